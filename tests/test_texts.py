"""Laws of sampled texts: exact counts, seeds, and chunks that do not overlap as long as they need not."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from byte_lm import ByteLM, ByteTokenizer
from prototokens.errors import InputError
from prototokens.lm.frozen import FrozenLM
from prototokens.texts.corpora import SOURCES, documents
from prototokens.texts.sampling import STARTS, continuations, sample

PROSE = "The first sentence is here. A second one follows!\n\nThen a paragraph (the last) ends. 12 more tokens"


@pytest.fixture
def lm() -> Any:
    return ByteLM()


@pytest.fixture(scope="module")
def tiny() -> FrozenLM:
    config = LlamaConfig(
        vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        model.lm_head.weight.data.normal_(0, 0.5)  # far from a uniform distribution
    assert model.num_parameters() < 20_000
    return FrozenLM(model, ByteTokenizer())


@pytest.fixture
def prose(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text(PROSE)
    return path


# Exact counts and seeds.


@pytest.mark.parametrize("source", ["random", "old", "recent"])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("length", [1, 37])
def test_counts_are_exact_and_seeds_decide(lm: Any, source: str, start: str, length: int) -> None:
    count = 1 if (source, start) == ("recent", "document") else 5
    ids = sample(source, lm, length, count, start=start)
    assert ids.shape == (count, length)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, sample(source, ByteLM(), length, count, start=start))  # type: ignore[arg-type]
    assert torch.equal(ids[:2], sample(source, lm, length, min(2, count), start=start))
    if length > 1 and count > 1:
        assert not torch.equal(ids, sample(source, lm, length, count, start=start, seed=1))


@given(size=st.integers(1, 40), length=st.integers(1, 40), seed=st.integers())
def test_every_start_is_drawn_once_and_clear_ones_first(
    tmp_path_factory: pytest.TempPathFactory, size: int, length: int, seed: int
) -> None:
    lm: Any = ByteLM()
    path = tmp_path_factory.getbasetemp() / "letters.txt"
    text = "".join(chr(ord("0") + i) for i in range(size))
    path.write_text(text)
    possible = size - length + 1
    if possible < 1:
        with pytest.raises(InputError, match=f"has no text of {length} tokens, its longest has {size}:"):
            sample(path, lm, length)
        return
    chunks = [lm.decode(ids) for ids in sample(path, lm, length, possible, seed=seed)]
    firsts = [text.index(chunk) for chunk in chunks]
    assert sorted(firsts) == list(range(possible))
    assert chunks == [text[first : first + length] for first in firsts]
    overlaps = [any(abs(a - b) < length for b in firsts[:i]) for i, a in enumerate(firsts)]
    assert overlaps == sorted(overlaps)
    with pytest.raises(InputError, match=f"holds {possible} different chunks of {length} tokens"):
        sample(path, lm, length, possible + 1)


def test_chunks_come_from_different_speeches_and_few_are_tokenized(lm: Any) -> None:
    speeches = documents("old", "test")
    texts = [lm.decode(ids) for ids in sample("old", lm, 200, len(speeches))]
    homes = [[d.name for d in speeches if text in d.text] for text in texts if "�" not in text]
    assert all(len(home) == 1 for home in homes)
    assert len({home[0] for home in homes}) == len(homes) > 20

    lm.encoded.clear()
    fresh: Any = ByteLM()
    sample("old", fresh, 8, 3)
    sample("old", fresh, 8, 3)
    assert len(fresh.encoded) == 3


def test_longer_speeches_are_drawn_more_often(lm: Any) -> None:
    speeches = documents("old", "test")
    longest = max(speeches, key=lambda d: len(d.text))
    share = len(longest.text) / sum(len(d.text) for d in speeches)
    hits = sum(lm.decode(sample("old", lm, 60, seed=seed)[0]) in longest.text for seed in range(200))
    assert hits / 200 == pytest.approx(share, abs=0.07)


def test_sentences_start_as_texts_of_their_own(lm: Any, prose: Path) -> None:
    chunks = [lm.decode(ids) for ids in sample(prose, lm, 12, 4, start="sentence", seed=3)]
    assert sorted(chunks) == ["12 more toke", "A second one", "The first se", "Then a parag"]
    assert lm.decode(sample(prose, lm, len(PROSE), start="document")[0]) == PROSE


def test_abbreviations_and_lower_case_end_no_sentence(lm: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("The U. S. Navy and Mr. Hay met etc. and so forth. So it was.")
    chunks = [lm.decode(ids) for ids in sample(path, lm, 9, 2, start="sentence")]
    assert sorted(chunks) == ["So it was", "The U. S."]


# Texts of the model's own.


def test_several_texts_continue_one_context(tiny: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Mock(wraps=continuations)
    monkeypatch.setattr("prototokens.texts.sampling.continuations", watched)
    ids = sample("generated", tiny, 6, 5, context_tokens=4, per_context=2)
    watched.assert_called_once()
    contexts = watched.call_args.args[1]
    assert torch.equal(contexts[0::2][:2], contexts[1::2])
    assert len(contexts.unique(dim=0)) == 3
    assert len(ids.unique(dim=0)) == 5
    with pytest.raises(InputError, match="per_context is 2: only 'generated' continues contexts, not 'random'"):
        sample("random", tiny, 6, 4, per_context=2)


def test_generated_texts_are_exact_seeded_and_leave_no_trace(tiny: FrozenLM) -> None:
    weights = {name: w.clone() for name, w in tiny.model.state_dict().items()}
    state, settings = torch.get_rng_state(), tiny.model.generation_config
    ids = sample("generated", tiny, 20, 3, context_tokens=4)
    assert ids.shape == (3, 20)
    assert ids.dtype == torch.int64
    assert ids.max() < 255  # neither the special token nor the row beyond the vocabulary
    assert torch.equal(ids, sample("generated", tiny, 20, 3, context_tokens=4))
    assert not torch.equal(ids, sample("generated", tiny, 20, 3, context_tokens=4, seed=1))
    assert torch.equal(state, torch.get_rng_state())
    assert tiny.model.generation_config is settings
    assert all(torch.equal(w, weights[name]) for name, w in tiny.model.state_dict().items())


def test_generated_texts_follow_the_models_own_distribution(tiny: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    context = torch.arange(4).repeat(4000, 1)
    ids = continuations(tiny, context, 1)[:, 0]
    logp = tiny.next_token_logits(context[0])[-1][:255].log_softmax(0)
    entropy_nats = -(logp.exp() * logp).sum()
    assert logp[ids].mean() == pytest.approx(-entropy_nats.item(), abs=0.05)
    assert len(ids.unique()) > 100
    greedy = GenerationConfig(do_sample=False, temperature=0.1, top_k=1, repetition_penalty=3.0, eos_token_id=2)
    monkeypatch.setattr(tiny.model, "generation_config", greedy)
    assert torch.equal(ids, continuations(tiny, context, 1)[:, 0])


def test_generated_texts_must_fit_the_model(tiny: FrozenLM) -> None:
    with pytest.raises(InputError, match="60 context tokens and 5 more make 65, but the model has 64 positions"):
        sample("generated", tiny, 5, context_tokens=60)
    with pytest.raises(InputError, match="tokens is 0: it must be at least 1"):
        continuations(tiny, torch.zeros(1, 3, dtype=torch.long), 0)


# What a user can mend.


def test_wrong_arguments_name_the_valid_ones(lm: Any) -> None:
    with pytest.raises(
        InputError, match=r"unknown source 'news': choose one of random, speeches, .* or give a folder, or a file"
    ):
        sample("news", lm, 8)
    with pytest.raises(InputError, match="unknown split 'dev': choose one of train, test, all"):
        sample("old", lm, 8, split="dev")
    with pytest.raises(InputError, match="unknown split 'dev': choose one of train, test, all"):
        documents("old", "dev")
    with pytest.raises(InputError, match="unknown start 'end': choose one of anywhere, sentence, document"):
        sample("old", lm, 8, start="end")
    with pytest.raises(InputError, match=r"^length is 0: it must be at least 1"):
        sample("random", lm, 0)
    with pytest.raises(InputError, match="count is 0: it must be at least 1"):
        sample("old", lm, 8, 0)
    for made in ("random", "generated"):
        with pytest.raises(InputError, match=f"'{made}' is made to order"):
            documents(made)
    assert list(SOURCES) == ["random", "speeches", "old", "recent", "generated", "pg19", "fanfics"]


def test_a_short_text_says_how_long_it_is(lm: Any, prose: Path) -> None:
    for start in STARTS:
        with pytest.raises(InputError, match=f"its longest has {len(PROSE)}: ask for at most {len(PROSE)}"):
            sample(prose, lm, len(PROSE) + 1, start=start)
    with pytest.raises(InputError, match=r"holds 1 different chunks of 8 tokens .*, not 2: ask for fewer"):
        sample(prose, lm, 8, 2, start="document")
