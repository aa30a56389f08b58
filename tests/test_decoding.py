"""Laws of decoding: one call of the model, the same text alone or in company, and only by the right model."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from families import RECIPE, batch, build, counted, family, tokenizer
from prototokens import FitConfig, FrozenLM, Given, InputError, ProtoTokens, Stop, decode, fit, fit_batch
from prototokens.arrangements import ARRANGEMENTS
from prototokens.decoding import calibration
from prototokens.lm.identity import Identity, hash_ids
from prototokens.metrics import logit_margins

START = Stop(max_steps=0)  # the vectors of a start decode too, if to nothing of use


def mixed(lm: FrozenLM) -> list[ProtoTokens]:
    """Proto-tokens of unlike length, arrangement and number of e-tokens."""
    return [
        fit(lm, lm.encode(text), FitConfig(arrangement, e_tokens, stop=START)).tokens
        for text, arrangement, e_tokens in (
            ("a", "e*n", 1),
            ("quick", "m,e,m*(n-1)", 1),
            ("brown fox", "bos,e,m*n", 3),
            ("jumps", "e,m*n", 1),
            ("over", "(e,m)*n/2", 2),
        )
    ]


@pytest.mark.parametrize("scores", [False, True])
def test_decoding_calls_the_model_once(lm: FrozenLM, scores: bool) -> None:
    tokens = mixed(lm)
    with counted(lm) as calls:
        decode(lm, tokens[2], scores=scores)
    assert calls.forward == [(1, 1 + 3 + 9)]
    with counted(lm) as calls:
        decode(lm, tokens, scores=scores)
    assert calls.forward == [(5, 1 + 3 + 9)]
    assert calls.backward == []


def test_a_batch_of_unlike_texts_decodes_as_one_by_one(lm: FrozenLM) -> None:
    tokens = mixed(lm)
    together = decode(lm, tokens)
    for vectors, decoded in zip(tokens, together, strict=True):
        alone = decode(lm, vectors)
        assert len(decoded.ids) == vectors.length
        assert torch.equal(decoded.ids, alone.ids)
        assert (decoded.text, decoded.exact) == (alone.text, alone.exact)
        assert torch.allclose(decoded.log_probs, alone.log_probs, rtol=1e-4, atol=1e-4)
        assert torch.allclose(decoded.margins, alone.margins, rtol=1e-4, atol=1e-4)


def test_scores_are_those_of_the_logits(lm: FrozenLM) -> None:
    vectors = mixed(lm)[1]
    decoded = decode(lm, vectors)
    logits = lm.model(inputs_embeds=vectors.inputs_embeds()).logits[0, 1:6]
    assert torch.equal(decoded.ids, logits.argmax(-1))
    assert decoded.ids.dtype == torch.int64
    assert torch.allclose(decoded.margins, logit_margins(logits, decoded.ids), rtol=1e-4, atol=1e-4)
    log_probs = logits.log_softmax(-1).amax(-1)
    assert torch.allclose(decoded.log_probs, log_probs, rtol=1e-4, atol=1e-4)
    assert torch.allclose(decoded.probabilities, logits.softmax(-1).amax(-1), rtol=1e-4, atol=1e-4)
    assert (decoded.margins >= 0).all()
    assert decoded.seconds > 0
    plain = decode(lm, vectors, scores=False)
    assert plain.log_probs is plain.margins is plain.probabilities is None


@given(st.lists(st.tuples(st.floats(0, 9, width=32), st.booleans()), max_size=20))
def test_a_calibration_counts_every_token_once(tokens: list[tuple[float, bool]]) -> None:
    margins, right = torch.tensor([m for m, _ in tokens]), torch.tensor([r for _, r in tokens], dtype=torch.bool)
    lows = (0.0, 0.5, 2.0)
    bins = calibration(margins, right, lows)
    assert [(b.low, b.high) for b in bins] == [(0.0, 0.5), (0.5, 2.0), (2.0, float("inf"))]
    assert sum(b.n_tokens for b in bins) == len(tokens)
    assert sum(b.n_right for b in bins) == sum(r for _, r in tokens)
    for b in bins:
        inside = [r for m, r in tokens if b.low <= m < b.high]
        assert (b.n_tokens, b.n_right) == (len(inside), sum(inside))
        assert b.share_right == sum(inside) / len(inside) if inside else math.isnan(b.share_right)


def test_a_calibration_of_other_things_is_refused() -> None:
    with pytest.raises(InputError, match=r"margins are \(2,\) and right is \(1,\); give one for each"):
        calibration(torch.zeros(2), torch.ones(1, dtype=torch.bool), [0.0])
    for lows in ([], [1.0, 1.0], [2.0, 1.0]):
        with pytest.raises(InputError, match=r"lows is \[.*\]; it must be numbers of logits that rise"):
            calibration(torch.zeros(2), torch.ones(2, dtype=torch.bool), lows)


def test_the_shapes_of_the_answer_follow_the_question(llama: FrozenLM) -> None:
    one = mixed(llama)[0]
    assert decode(llama, one).text == decode(llama, [one])[0].text
    assert len(decode(llama, (one, one))) == 2
    with counted(llama) as calls:
        assert decode(llama, []) == []
    assert calls.forward == []


def test_exact_is_told_by_the_hash(llama: FrozenLM) -> None:
    good = fit(llama, llama.encode("tree"), RECIPE)
    assert decode(llama, good.tokens).exact
    assert good.tokens.provenance.target_hash == hash_ids(llama.encode("tree"))
    other = replace(good.tokens, provenance=replace(good.tokens.provenance, target_hash=hash_ids(llama.encode("free"))))
    assert not decode(llama, other).exact
    assert decode(llama, other).text == "tree"
    moved = replace(good.tokens, e=good.tokens.e + 3)
    assert not decode(llama, moved).exact
    assert [d.exact for d in decode(llama, [good.tokens, other, moved])] == [True, False, False]
    ids = decode(llama, good.tokens).ids
    assert hash_ids(ids) == hash_ids(ids.int()) != hash_ids(ids.flip(0))


def test_a_text_fitted_in_a_batch_decodes_alone(lm: FrozenLM) -> None:
    results = fit_batch(lm, batch(lm, "no", "Zq"), RECIPE, Given(share="m"))
    assert [decode(lm, result.tokens).text for result in results if result.exact] == ["no", "Zq"]


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_decoding_needs_only_the_vectors(arrangement: str) -> None:
    # What was fitted with a BOS vector does not ask the model for it again.
    lm = FrozenLM(build("gpt2"), tokenizer())
    vectors = fit(lm, lm.encode("no"), replace(RECIPE, arrangement=arrangement)).tokens
    lm.fixed_vector = None  # type: ignore[assignment, method-assign]
    lm.tokenizer = tokenizer()
    assert decode(lm, vectors).ids.shape == (2,)


def test_vectors_of_another_model_are_refused(llama: FrozenLM) -> None:
    vectors = fit(llama, llama.encode("ab"), FitConfig(stop=START)).tokens
    prints = [lm.identity.fingerprint[:12] for lm in (llama, family("gpt2"))]
    message = (
        f"these proto-tokens belong to LlamaForCausalLM (weights {prints[0]}), "
        f"not to GPT2LMHeadModel (weights {prints[1]})"
    )
    for tokens in (vectors, [vectors]):
        with pytest.raises(InputError) as error:
            decode(family("gpt2"), tokens)
        assert str(error.value) == message
    with pytest.raises(InputError, match="belong to LlamaForCausalLM"):  # one of a batch is enough
        decode(family("gpt2"), [fit(family("gpt2"), torch.tensor([1]), FitConfig(stop=START)).tokens, vectors])


def test_revision_and_vocabulary_count_too(llama: FrozenLM) -> None:
    vectors = fit(llama, llama.encode("ab"), FitConfig(stop=START)).tokens

    def of(**changes: str) -> ProtoTokens:
        model = Identity(**(vars(vectors.provenance.model) | changes))
        return replace(vectors, provenance=replace(vectors.provenance, model=model))

    assert decode(llama, of(name="elsewhere", revision="abc")).ids.shape == (2,)  # the weights decide
    with pytest.raises(InputError, match=r"to far/away at revision v2 \(weights ffff\), not to LlamaForCausalLM"):
        decode(llama, of(name="far/away", revision="v2", fingerprint="ffff"))
    with pytest.raises(InputError, match="belong to near/by with another tokenizer vocabulary"):
        decode(llama, of(name="near/by", tokenizer_hash="ffff"))


def test_an_input_longer_than_the_positions_is_refused(llama: FrozenLM) -> None:
    with pytest.raises(InputError, match="65 input positions are asked for"):
        llama.next_token_logits(torch.zeros(65, dtype=torch.long))


def test_what_is_no_proto_tokens_is_told_what_was_meant(llama: FrozenLM) -> None:
    result = fit(llama, llama.encode("ab"), FitConfig(stop=START))
    for value in (result, [result.tokens, result]):
        with pytest.raises(InputError, match=r"decode takes proto-tokens, not a FitResult: give its .tokens"):
            decode(llama, value)  # type: ignore[call-overload]
    for value in ("a.safetensors", 7, [None]):
        with pytest.raises(InputError, match=r"decode takes proto-tokens, not a (str|int|NoneType): load\(path\)"):
            decode(llama, value)  # type: ignore[call-overload]
