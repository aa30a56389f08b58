"""Laws of arrangements: what stands where, and which outputs are read."""

import json
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from families import AnalyticLM, family, tokenizer
from prototokens import Arrangement, FitConfig, FrozenLM, Given, InputError, Stop, decode, fit
from prototokens.arrangements import ARRANGEMENTS, arrangement_named

# Written by hand: inputs for T = 1, 2, 3, 4 with one e-token, then with two; the outputs in brackets are read.
# e = e_1, f = e_2, m = m, b = BOS.
TABLE = {
    "e*n": (
        "[e]  [ee]  [eee]  [eeee]",
        "[e]  [ef]  [efe]  [efef]",
    ),
    "e*n/2,m*n/2": (
        "[e]  [em]  [eem]  [eemm]",
        "[e]  [em]  [efm]  [efmm]",
    ),
    "(e,m)*n/2": (
        "[e]  [em]  [eme]  [emem]",
        "[e]  [em]  [emf]  [emfm]",
    ),
    "e,m*n": (
        "e[m]  e[mm]  e[mmm]  e[mmmm]",
        "ef[m]  ef[mm]  ef[mmm]  ef[mmmm]",
    ),
    "e,m*(n-1)": (
        "[e]  [em]  [emm]  [emmm]",
        "e[f]  e[fm]  e[fmm]  e[fmmm]",
    ),
    "m,e,m*(n-1)": (
        "m[e]  m[em]  m[emm]  m[emmm]",
        "me[f]  me[fm]  me[fmm]  me[fmmm]",
    ),
    "bos,e,m*(n-1)": (
        "b[e]  b[em]  b[emm]  b[emmm]",
        "be[f]  be[fm]  be[fmm]  be[fmmm]",
    ),
    "bos,e,m*n": (
        "be[m]  be[mm]  be[mmm]  be[mmmm]",
        "bef[m]  bef[mm]  bef[mmm]  bef[mmmm]",
    ),
}
CASES = [
    (name, length, e_tokens, spelt)
    for name, rows in TABLE.items()
    for e_tokens, row in enumerate(rows, 1)
    for length, spelt in enumerate(row.split(), 1)
]
EVERY_LENGTH = list(product(ARRANGEMENTS, (1, 2, 3, 5, 8), (1, 2, 3)))


def spell(arrangement: Arrangement, length: int, e_tokens: int) -> str:
    layout, letters = arrangement.layout(length, e_tokens), "efgh"[:e_tokens] + "mb"
    spelt = "".join(letters[slot] for slot in layout.slots)
    read = layout.read_positions()
    return f"{spelt[: read.start]}[{spelt[read.start : read.stop]}]{spelt[read.stop :]}"


def test_the_table_is_complete() -> None:
    assert list(TABLE) == list(ARRANGEMENTS)
    assert len(CASES) == 8 * 4 * 2


@pytest.mark.parametrize(("name", "length", "e_tokens", "spelt"), CASES)
def test_layouts_are_as_written_by_hand(name: str, length: int, e_tokens: int, spelt: str) -> None:
    assert spell(ARRANGEMENTS[name], length, e_tokens) == spelt


@pytest.mark.parametrize(("name", "length", "e_tokens", "spelt"), CASES)
def test_outputs_are_read_where_they_stand(known, name: str, length: int, e_tokens: int, spelt: str) -> None:
    # On the analytic model a vector is read as its own id, so what is decoded spells the positions that are read.
    vectors = known.embed(known.encode("efmb"))
    read = spelt[spelt.index("[") + 1 : -1]
    config = FitConfig(arrangement=name, e_tokens=e_tokens, stop=Stop(max_steps=0))
    given = Given(e=vectors[:e_tokens], fixed={"bos": vectors[3]} if "bos" in name else None)
    tokens = replace(fit(known, known.encode(read), config, given).tokens, m=vectors[2])
    decoded = decode(known, tokens)
    assert decoded.text == read
    assert decoded.exact


@given(
    head=st.lists(st.sampled_from(["e", "m", "bos", "x"]), max_size=4),
    body=st.lists(st.sampled_from(["e", "m", "bos", "x"]), min_size=1, max_size=4),
    tiling=st.sampled_from(["cycle", "blocks"]),
    first_read=st.sampled_from(["head", "body"]),
    length=st.integers(1, 20),
    e_tokens=st.integers(1, 3),
)
def test_any_arrangement_reads_its_last_outputs(head, body, tiling, first_read, length, e_tokens) -> None:
    if "e" not in head + body or (first_read == "head" and not head):
        with pytest.raises(InputError):
            Arrangement("any", tuple(head), tuple(body), tiling, first_read)
        return
    arrangement = Arrangement("any", tuple(head), tuple(body), tiling, first_read)
    layout = arrangement.layout(length, e_tokens)
    reads = layout.read_positions()
    assert len(reads) == length
    assert reads.start >= 0
    assert reads.stop == len(layout.slots)  # what stands behind the last output read could not change it
    spelt_head = sum(e_tokens if symbol == "e" else 1 for symbol in head)
    assert reads.start == spelt_head - (first_read == "head")
    assert set(layout.slots) <= set(range(e_tokens + 1 + len(arrangement.fixed)))
    assert Arrangement.from_json(json.loads(json.dumps(arrangement.to_json()))) == arrangement


@pytest.mark.parametrize(("name", "length", "e_tokens"), EVERY_LENGTH)
def test_vectors_go_where_the_layout_says(name: str, length: int, e_tokens: int) -> None:
    arrangement = ARRANGEMENTS[name]
    layout = arrangement.layout(length, e_tokens)
    e, m = torch.randn(2, e_tokens, 4), torch.randn(2, 4)
    fixed = torch.randn(len(arrangement.fixed), 4, dtype=torch.float64)
    inputs_embeds = layout.inputs_embeds(e, m, fixed)
    assert inputs_embeds.shape == (2, len(layout.slots), 4)
    assert inputs_embeds.dtype == torch.float32
    for text in range(2):
        vectors = [*e[text], m[text], *fixed.float()]
        for position, slot in enumerate(layout.slots):
            assert torch.equal(inputs_embeds[text, position], vectors[slot])


def test_blocks_give_the_first_symbols_what_does_not_divide() -> None:
    three = Arrangement("three", (), ("e", "m", "bos"), "blocks", "body")
    assert [spell(three, n, 1) for n in (1, 2, 3, 4, 5, 6)] == [
        "[e]", "[em]", "[emb]", "[eemb]", "[eemmb]", "[eemmbb]",
    ]  # fmt: skip


def test_an_arrangement_of_ones_own_holds_a_vector_of_ones_own(known) -> None:
    arrangement = Arrangement("x,e,(x,m)*n", ("x", "e"), ("x", "m"))
    x = known.embed(known.encode("x"))[0]
    result = fit(known, known.encode("exmx"), FitConfig(arrangement), Given(fixed={"x": x}))
    assert result.exact
    assert torch.equal(result.tokens.fixed, x[None])
    assert result.tokens.arrangement == arrangement
    with pytest.raises(InputError, match=r"fixed vector 'x': give its value in Given\(fixed=...\)"):
        fit(known, known.encode("exmx"), FitConfig(arrangement))


def test_e_tokens_take_turns_in_the_body() -> None:
    assert spell(Arrangement("turns", ("m",), ("e", "e", "m"), first_read="body"), 7, 3) == "m[efmgemf]"


@pytest.mark.parametrize("name", ["e,m*n", "e, m * n", " e,m *n "])
def test_names_may_hold_spaces(name: str) -> None:
    assert arrangement_named(name) is ARRANGEMENTS["e,m*n"]
    assert arrangement_named(ARRANGEMENTS["e,m*n"]) is ARRANGEMENTS["e,m*n"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"body": ()}, "arrangement 'a': the body needs at least one symbol"),
        ({"head": ()}, "arrangement 'a': t_1 cannot be read in an empty head"),
        ({"head": ("m",)}, "arrangement 'a': no position holds an e-token"),
    ],
)
def test_arrangements_that_cannot_be_are_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Arrangement(**{"name": "a", "head": ("e",), "body": ("m",)} | change)


@pytest.mark.parametrize("change", [{"tiling": "spiral"}, {"first_read": "tail"}])
def test_unknown_words_are_refused(change: dict) -> None:
    with pytest.raises(InputError, match=next(iter(change.values()))):
        Arrangement(**{"name": "a", "head": ("e",), "body": ("m",)} | change)


def test_an_unknown_name_lists_the_valid_ones() -> None:
    with pytest.raises(InputError, match="unknown arrangement 'e,n'; choose one of: ") as error:
        arrangement_named("e,n")
    assert all(name in str(error.value) for name in ARRANGEMENTS)


def test_bos_is_the_tokenizers_then_the_models_then_eos_then_id_0() -> None:
    lm = family("llama")
    assert torch.equal(lm.fixed_vector("bos"), lm.embed(torch.tensor(256)))

    def with_ids(config: dict, tokens: dict) -> FrozenLM:
        model = AnalyticLM()
        model.config = SimpleNamespace(**config)
        return FrozenLM(model, SimpleNamespace(get_vocab=tokenizer().get_vocab, **tokens))

    for config, tokens, expected in (
        ({"bos_token_id": 5}, {"bos_token_id": 4, "eos_token_id": 6}, 4),
        ({"bos_token_id": 5}, {"bos_token_id": None, "eos_token_id": 6}, 5),
        ({"bos_token_id": None}, {"bos_token_id": None, "eos_token_id": 6}, 6),
        ({}, {}, 0),
    ):
        assert with_ids(config, tokens).fixed_vector("bos").argmax() == expected
    with pytest.raises(InputError, match="the arrangement holds a fixed vector 'x': give its value in Given"):
        lm.fixed_vector("x")


@pytest.mark.parametrize(("length", "e_tokens"), [(10**9, 1), (2, 10**9), (0, 1), (1, 0)])
def test_counts_out_of_bounds_are_refused_before_memory_is_taken(length: int, e_tokens: int) -> None:
    for arrangement in ARRANGEMENTS.values():
        with pytest.raises(InputError, match="it must have 1 to 1048576"):
            arrangement.layout(length, e_tokens)
