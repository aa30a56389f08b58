"""Laws of texts in blocks: an e-token for every block of b tokens, one m for all, one forward pass."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from families import counted, family
from prototokens import AdamW, FrozenLM, InputError, Stop, decode, fit, fit_batch, load, preset, save
from prototokens.arrangements import ARRANGEMENTS, Arrangement, arrangement_named, blocks
from prototokens.cli import app
from prototokens.fitting.bank import Bank
from prototokens.fitting.fit import descend
from prototokens.fitting.recipes import AUTO_BLOCK, LONGEST_IN_TWO
from prototokens.fitting.starter import Starter
from prototokens.fitting.starts import start_vectors
from prototokens.fitting.train_starter import StarterConfig, train_starter
from prototokens.geometry.paths import segment


def spelt(arrangement: Arrangement, length: int) -> str:
    layout = arrangement.layout(length)
    k = arrangement.n_e_tokens(length)
    names = [*(f"e{i + 1}" for i in range(k)), "m"]
    return " ".join(names[slot] for slot in layout.slots)


def test_inputs_spelt_out_by_hand() -> None:
    three = blocks(3)
    assert [spelt(three, length) for length in (1, 2, 3, 4, 7)] == [
        "m e1",
        "m e1 m",
        "m e1 m m",
        "m e1 m m e2",
        "m e1 m m e2 m m e3",
    ]
    assert spelt(blocks(1), 3) == "m e1 e2 e3"
    assert {blocks(3).layout(length).first for length in range(1, 9)} == {1}  # t_1 is read at e_1


@given(st.integers(1, 40), st.integers(1, 12))
def test_every_block_begins_with_an_e_token_of_its_own(length: int, b: int) -> None:
    layout, k = blocks(b).layout(length), blocks(b).n_e_tokens(length)
    assert k == -(-length // b)
    read = [layout.slots[position] for position in layout.read_positions()]
    assert read == [i // b if i % b == 0 else k for i in range(length)]
    assert layout.slots[0] == k  # m stands at position 0
    assert len(layout.slots) == length + 1


@given(st.integers(1, 20), st.integers(0, 20))
def test_a_text_of_one_block_is_the_two_vector_arrangement(length: int, more: int) -> None:
    single, two = blocks(length + more).layout(length), ARRANGEMENTS["m,e,m*(n-1)"].layout(length)
    assert (single.slots, single.first) == (two.slots, two.first)


def test_names_are_read_back_and_unknown_ones_refused() -> None:
    for b in (1, 2, 8, 100):
        assert arrangement_named(blocks(b).name) == blocks(b) == Arrangement.from_json(blocks(b).to_json())
    assert arrangement_named("m, (e, m*7)") == blocks(8)
    for name in ("m,(e,m*)", "m,(e,m*-1)", "m,(m*7)", "m,(e,m*7", "m,(e,m*12345678)"):
        with pytest.raises(InputError, match=r"or m,\(e,m\*7\) for blocks of 8 tokens"):
            arrangement_named(name)
    for b in (0, -1, 1 << 21):
        with pytest.raises(InputError, match=r"blocks of .* tokens: they must have 1 to"):
            blocks(b)


def test_an_arrangement_in_blocks_has_one_e_token_in_its_body() -> None:
    for head, body in ((("m",), ("m",)), (("e",), ("e", "m")), (("m",), ("e", "e"))):
        with pytest.raises(InputError):
            Arrangement("odd", head, body, "e-blocks", "body")
    with pytest.raises(InputError, match="t_1 is read at the body's first position"):
        Arrangement("odd", ("m",), ("e", "m"), "e-blocks", "head")
    with pytest.raises(InputError, match="it takes 3, one for each block of 4"):
        blocks(4).layout(9, 2)


def test_families_are_blocks_of_any_length() -> None:
    assert blocks(4).is_of_family(blocks(16))
    two = ARRANGEMENTS["m,e,m*(n-1)"]
    assert not blocks(4).is_of_family(two)
    assert not two.is_of_family(blocks(4))
    assert two.is_of_family(two)
    other = Arrangement("other", ("bos",), ("e", "m"), "e-blocks", "body")
    assert not blocks(2).is_of_family(other)


def test_means_of_blocks_are_those_of_a_loop() -> None:
    values = torch.rand(3, 11)
    means = blocks(4).layout(11).block_means(values)
    assert means.shape == (3, 3)
    for row in range(3):
        for k, part in enumerate((values[row, :4], values[row, 4:8], values[row, 8:])):
            assert torch.isclose(means[row, k], part.mean())
    whole = ARRANGEMENTS["m,e,m*(n-1)"].layout(11).block_means(values)
    assert torch.allclose(whole, values.mean(-1, keepdim=True))


def test_each_e_token_starts_at_its_own_block(llama: FrozenLM) -> None:
    ids = llama.encode("abcdefghij")
    start = Starter(torch.ones(llama.width), torch.full((llama.width,), 2.0), blocks(8), llama.identity, {})
    e, m = start_vectors(llama, ids, preset("fast", arrangement=blocks(4), tokens_per_vector=None, start=start,
                                            perturbation=0.0), 0)  # fmt: skip
    for k, part in enumerate((ids[:4], ids[4:8], ids[8:])):
        assert torch.allclose(e[k], llama.embed(part).mean(0) + 1)
    assert torch.equal(m, torch.full_like(m, 2.0))


def test_each_e_token_s_rate_is_set_by_its_own_block_s_loss(llama: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = llama.encode("abcdefghij").unsqueeze(0)
    adamw = AdamW(0.5, anneal_below_nats=1000.0, least_rate=0.01)
    config = preset("fast", arrangement=blocks(4), tokens_per_vector=None, start="text-e", perturbation=0.0,
                    optimiser=adamw, axes_optimiser=None, stop=Stop(max_steps=1, margin=float("inf")))  # fmt: skip
    e, m = start_vectors(llama, ids[0], config, 0)
    layout = blocks(4).layout(10)
    logits = llama.logits(layout.inputs_embeds(e[None], m[None], torch.empty(0, llama.width)), layout.read_positions())
    loss = torch.nn.functional.cross_entropy(logits[0], ids[0], reduction="none")
    expected = [[0.5 * (part.mean() / 1000).sqrt().item() for part in (loss[:4], loss[4:8], loss[8:])]]
    seen: list[torch.Tensor] = []
    step = Bank.step

    def watched(bank: Bank, gradient: torch.Tensor, settings: AdamW, rates: torch.Tensor) -> None:
        seen.append(rates)
        step(bank, gradient, settings, rates)

    monkeypatch.setattr(Bank, "step", watched)
    descend(llama, ids, config)
    of_e, of_m = seen
    assert torch.allclose(of_e, torch.tensor(expected), rtol=1e-4)
    assert torch.allclose(of_m, 0.5 * (loss.mean() / 1000).sqrt().reshape(1), rtol=1e-4)


def test_a_vector_of_a_row_moves_at_its_own_rate() -> None:
    """The first step of Adam moves every entry by its learning rate."""
    values = torch.randn(2, 3, 5)
    bank = Bank(values, torch.arange(2), trained=True)
    rates = torch.tensor([[0.1, 0.0, 0.3], [0.4, 0.5, 0.0]])
    bank.step(torch.randn(2, 3, 5), AdamW(1.0, (0.9, 0.9), eps=1e-12), rates)
    assert torch.allclose((bank.values - values).abs(), rates[..., None].expand(2, 3, 5), atol=1e-5)


def test_a_block_s_rate_does_not_fall_below_the_least() -> None:
    rates = AdamW(2.0, anneal_below_nats=4.0).rates(torch.tensor([0.0, 1e-6, 4.0, 9.0]), 1.0, 0.15)
    assert torch.allclose(rates, torch.tensor([0.3, 0.3, 2.0, 2.0]))
    for least in (-0.1, 1.1):
        with pytest.raises(InputError, match="least_rate"):
            AdamW(least_rate=least)


def test_the_default_takes_two_vectors_for_short_texts_and_blocks_for_long_ones() -> None:
    config = preset()
    for length in (1, LONGEST_IN_TWO):
        assert config.at(length).arrangement == ARRANGEMENTS["m,e,m*(n-1)"]
    assert config.at(LONGEST_IN_TWO + 1).arrangement == blocks(AUTO_BLOCK)
    four = preset(tokens_per_vector=4)
    assert (four.at(4).arrangement, four.at(5).arrangement) == (ARRANGEMENTS["m,e,m*(n-1)"], blocks(4))
    assert preset("paper").at(500).arrangement == ARRANGEMENTS["e,m*(n-1)"]
    with pytest.raises(InputError, match="tokens_per_vector is 0; it must be at least 1"):
        preset(tokens_per_vector=0)
    with pytest.raises(InputError, match="tokens_per_vector is 'many'"):
        preset(tokens_per_vector="many")
    with pytest.raises(InputError, match=r"not with .* and 2"):
        preset(tokens_per_vector=8, e_tokens=2)
    with pytest.raises(InputError, match=r"not with 'e,m\*n' and 1"):
        preset(tokens_per_vector=8, arrangement="e,m*n")
    for other in (preset(e_tokens=2), preset(arrangement="e,m*n"), preset(tokens_per_vector=None)):
        assert other.at(500).arrangement == other.arrangement


def test_a_learned_start_decides_which_arrangement_it_serves(llama: FrozenLM) -> None:
    for_two, for_blocks = (
        Starter(torch.zeros(llama.width), torch.zeros(llama.width), arrangement, llama.identity, {})
        for arrangement in (ARRANGEMENTS["m,e,m*(n-1)"], blocks(4))
    )
    for length in (1, 500):
        assert preset(start=for_two).at(length).arrangement == ARRANGEMENTS["m,e,m*(n-1)"]
        assert preset(start=for_blocks).at(length).arrangement == blocks(AUTO_BLOCK)
        assert preset(start=for_blocks, tokens_per_vector=5).at(length).arrangement == blocks(5)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mamba"])
def test_a_text_in_blocks_is_fitted_saved_and_decoded_in_one_pass(name: str, tmp_path: Path) -> None:
    lm = family(name)
    ids = lm.encode("abcdefg")
    result = fit(lm, ids, preset(tokens_per_vector=2, restarts=4, stop=Stop(max_steps=400, margin=0.01)))
    tokens = result.tokens
    assert (tuple(tokens.e.shape), tokens.arrangement) == ((4, lm.width), blocks(2))
    assert result.exact
    save(tmp_path / "file", tokens)
    again = load(tmp_path / "file")
    with counted(lm) as calls:
        decoded = decode(lm, again)
    assert len(calls.forward) == 1
    assert decoded.exact
    assert torch.equal(decoded.ids, ids)


def test_a_text_with_an_e_token_for_every_token_is_solved_with_restarts(llama: FrozenLM) -> None:
    ids = llama.encode("zyxwv")
    assert fit(llama, ids, preset(tokens_per_vector=1, restarts=8, stop=Stop(max_steps=400))).exact


def test_vectors_that_do_not_make_a_text_s_blocks_are_refused(llama: FrozenLM) -> None:
    tokens = fit(llama, llama.encode("abcde"), preset(tokens_per_vector=2, stop=Stop(max_steps=0))).tokens
    with pytest.raises(InputError, match="3 e-tokens for 9 tokens in 'm,\\(e,m\\*1\\)': it takes 5"):
        replace(tokens, length=9)


def test_a_batch_takes_one_step_as_each_text_alone(llama: FrozenLM) -> None:
    texts = torch.stack([llama.encode("abcdefgh"), llama.encode("12345678")])
    config = preset(tokens_per_vector=3, stop=Stop(max_steps=1, margin=float("inf")))
    together = fit_batch(llama, texts, config)
    for ids, result in zip(texts, together, strict=True):
        alone = fit(llama, ids, config)
        assert torch.allclose(alone.tokens.e, result.tokens.e, atol=1e-4)
        assert torch.allclose(alone.tokens.m, result.tokens.m, atol=1e-4)


def test_a_start_for_blocks_serves_blocks_of_any_length(llama: FrozenLM) -> None:
    config = StarterConfig(block_lengths=(2, 4), lengths=(6, 8), batch_tokens=8, inner_steps=2, steps=2)
    drawn = torch.stack([llama.encode("abcdefgh")])
    starter = train_starter(llama, lambda length, count, _: drawn[:, :length].expand(count, -1), config)
    assert starter.arrangement == blocks(2)
    for b in (1, 3, 7):
        starter.check(llama.identity, blocks(b))
    with pytest.raises(InputError, match=r"this learned start is for 'm,\(e,m\*1\)', not for 'm,e,m\*\(n-1\)'"):
        starter.check(llama.identity, ARRANGEMENTS["m,e,m*(n-1)"])
    assert starter.training["config"]["block_lengths"] == [2, 4]
    other = replace(config, block_lengths=(4,), steps=1)
    after = train_starter(llama, lambda length, count, _: drawn[:, :length].expand(count, -1), other, begin=starter)
    assert after.arrangement == blocks(4)  # that of its own training, not of the start that it began at


def test_a_start_moves_by_the_mean_over_texts_and_blocks(llama: FrozenLM) -> None:
    ids = torch.stack([llama.encode("abcdefgh"), llama.encode("ijklmnop")])
    config = StarterConfig(block_lengths=(4,), lengths=(8,), batch_tokens=16, inner_steps=3, steps=1, rates=(0.5, 0.5))
    trained = train_starter(llama, lambda *_: ids, config)
    begin = Starter(torch.zeros(llama.width), llama.embedding_statistics.mean, blocks(4), llama.identity, {})
    inner = preset("fast", arrangement=blocks(4), tokens_per_vector=None, start=begin, perturbation=0.0,
                   stop=Stop(max_steps=3, margin=float("inf")), preset=None)  # fmt: skip
    moved = [
        result.e - start_vectors(llama, text, inner, 0)[0]
        for text, result in zip(ids, descend(llama, ids, inner).results, strict=True)
    ]
    assert torch.allclose(trained.e, 0.5 * torch.cat(moved).mean(0), atol=1e-5)
    fitted_m = torch.stack([result.m for result in descend(llama, ids, inner).results])
    assert torch.allclose(trained.m, begin.m + 0.5 * (fitted_m - begin.m).mean(0), atol=1e-5)


def test_axes_wait_for_enough_gradients_of_m(llama: FrozenLM) -> None:
    """With blocks, e meets as many gradients as there are blocks, and m one a text."""
    ids = torch.stack([llama.encode("abcdefgh")] * 2)
    steps = -(-llama.width // (4 * 2 * 3)) + 1  # e has met more than D gradients: 4 blocks, 2 texts, 3 inner steps
    config = StarterConfig(block_lengths=(2,), lengths=(8,), batch_tokens=16, inner_steps=3, steps=steps)
    assert train_starter(llama, lambda *_: ids, config).axes is None
    assert train_starter(llama, lambda *_: ids, replace(config, steps=8 * steps)).axes is not None


def test_a_path_between_texts_in_blocks_needs_one_length(llama: FrozenLM) -> None:
    stop = Stop(max_steps=0)
    first, last = (
        fit(llama, llama.encode(t), preset(tokens_per_vector=2, stop=stop)).tokens for t in ("abcd", "abcdefg")
    )
    with pytest.raises(InputError, match="one number of e-tokens; these have 2 and 4"):
        segment(first, last)


def test_the_command_line_takes_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], llama: FrozenLM
) -> None:
    monkeypatch.setattr("prototokens.lm.loading.load_lm", lambda *_, **__: llama)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["prototokens", *arguments])
        with pytest.raises(SystemExit) as stop:
            app.main()
        return stop.value.code, *capsys.readouterr()

    text = "abcdefghi" * 4  # 36 tokens
    for options, k in (((), 5), (("--tokens-per-vector", "12"), 3), (("--e-tokens", "1"), 1), (("--e-tokens", "2"), 2)):
        code, out, _ = run("fit", text, "--max-steps", "0", "-o", "file", "--force", "--json", *options)
        assert code == 1
        record = json.loads(out)
        assert (record["e_tokens"], record["vectors"]) == (k, k + 1)
        assert (record["bytes"], record["text_bytes"]) == ((k + 1) * llama.width * 4, 36)
    record = json.loads(run("inspect", "file", "--json")[1])
    assert (record["e_tokens"], record["vectors"], record["bytes"]) == (2, 3, 3 * llama.width * 4)
    assert run("fit", text, "--e-tokens", "1", "--tokens-per-vector", "8")[::2] == (
        2,
        "error: --e-tokens and --tokens-per-vector both set the number of e-tokens: give one of them\n",
    )
    message = "error: --block-lengths is '8,x'; it must be numbers of tokens such as 8,16\n"
    assert run("starter", "train", "-o", "start", "--block-lengths", "8,x")[::2] == (2, message)
