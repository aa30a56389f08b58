"""`generate` and `drafter train`: their JSON, their exit codes, and one line for every mistake."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from encoders import PROSE, prose_file
from families import build, family, save_model
from prototokens import FrozenLM, load_lm
from prototokens.cli import app as cli
from prototokens.cli.drafter import DrafterOptions
from prototokens.cli.generate import TextStream
from prototokens.drafting import generating, train_drafter
from prototokens.drafting.drafter import Drafter, _shipped, load_drafter, read_drafter, save_drafter
from prototokens.drafting.train_drafter import DrafterTraining
from prototokens.lm.loading import quiet_libraries

PROMPT = PROSE[:20]
SMALL = ("--prompt-lengths", "4,8", "--new-tokens", 8, "--texts", 8, "--batch-texts", 4, "--places", 4,
         "--masks", 1, "--drafts", 2, "--input-width", 8, "--reader-width", 8)  # fmt: skip


@pytest.fixture(scope="module")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models: a llama, another one, and one without attention."""
    folder = tmp_path_factory.mktemp("models")
    for name, kind in ("tiny", "llama"), ("other", "qwen3"), ("mamba", "mamba"):
        save_model(kind, folder / name)
    return folder


@pytest.fixture(scope="module")
def drafter(models_folder: Path) -> Path:
    """A drafter whose learned inputs are not all the same."""
    return save_drafter(models_folder / "drafter", random_drafter(load_lm(str(models_folder / "tiny"))))


def random_drafter(lm: FrozenLM) -> Drafter:
    drafter = Drafter.untrained(lm)
    with torch.no_grad():
        drafter.network.masks.normal_(generator=torch.Generator().manual_seed(0))
    return drafter


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, models_folder: Path) -> Run:
    """Run the command line in an empty folder: exit code, stdout, and stderr without loading and progress."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, model: str = "tiny", stdin: bytes = b"") -> tuple[int, str, str]:
        words = ["prototokens", *map(str, arguments), "--model", str(models_folder / model)]
        monkeypatch.setattr(sys, "argv", words)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        return stop.value.code, out, "".join(x for x in err.splitlines(True) if not x.startswith(("loading", "step ")))

    return call


def plain_text(folder: Path, n_tokens: int) -> str:
    """What transformers' own generation writes behind the prompt."""
    lm = load_lm(str(folder))
    return lm.decode(lm.generate(lm.embed(lm.encode(PROMPT)).unsqueeze(0), n_tokens)[0].cpu())


@pytest.mark.parametrize("options", [(), ("--tree-width", 1), ("--max-nodes", 1), ("--tree-width", 9)])
def test_stdout_is_the_text_that_the_model_writes_without_drafts(
    run: Run, models_folder: Path, drafter: Path, options: tuple
) -> None:
    code, out, err = run("generate", PROMPT, "--drafter", drafter, "--max-new-tokens", 20, *options)
    assert (code, out) == (0, plain_text(models_folder / "tiny", 20))
    told = re.fullmatch(r"20 tokens in (\d+) passes \((\d+\.\d\d) a pass\), \d+\.\d\d s\n", err)
    assert told
    assert float(told[2]) == round(20 / int(told[1]), 2)


@pytest.mark.parametrize("settings", [("--temperature", 0.9), ("--temperature", 1, "--top-k", 5, "--top-p", 0.9)])
def test_a_drafter_does_not_change_what_is_sampled(run: Run, drafter: Path, settings: tuple) -> None:
    texts = set()
    for seed in (1, 2):
        sampled = ("generate", PROMPT, "--max-new-tokens", 20, *settings, "--seed", seed)
        (drafted, plain) = (run(*sampled, "--drafter", name)[:2] for name in (drafter, "none"))
        assert drafted == plain
        texts.add(plain[1])
    assert len(texts) == 2


def test_prompts_come_from_files_and_stdin(run: Run, tmp_path: Path, drafter: Path) -> None:
    (tmp_path / "letter").write_text(PROMPT)
    generate = ("generate", "--drafter", drafter, "--max-new-tokens", 5)
    texts = [run(*generate, PROMPT), run(*generate, "--file", "letter"), run(*generate, "-", stdin=PROMPT.encode())]
    assert len({text[:2] for text in texts}) == 1


def test_json_says_what_was_written_in_how_many_passes(run: Run, models_folder: Path, drafter: Path) -> None:
    code, out, err = run("generate", PROMPT, "--drafter", drafter, "--max-new-tokens", 9, "--json")
    record = json.loads(out)
    assert (code, err) == (0, "")
    assert set(record) == {"text", "tokens", "passes", "tokens_per_pass", "seconds", "stopped", "drafter", "model"}
    assert record["text"] == plain_text(models_folder / "tiny", 9)
    assert (record["tokens"], record["stopped"], record["seconds"] > 0) == (9, False, True)
    assert record["drafter"] == load_drafter(drafter).name
    assert record["tokens_per_pass"] == 9 / record["passes"]
    code, out, err = run("generate", PROMPT, "--drafter", "none", "--max-new-tokens", 9, "--json")
    plain = json.loads(out)
    assert (code, err, plain["drafter"], plain["passes"], plain["text"]) == (0, "", None, 9, record["text"])


def test_compare_also_generates_without_drafts(run: Run, drafter: Path) -> None:
    generate = ("generate", PROMPT, "--drafter", drafter, "--max-new-tokens", 9, "--compare")
    record = json.loads(run(*generate, "--json")[1])
    assert (record["same_text"], record["first_difference"]) == (True, None)
    assert record["speedup"] == record["plain_seconds"] / record["seconds"]
    code, out, err = run(*generate)
    assert (code, out) == (0, record["text"])
    assert re.search(r"\nwithout drafts \d+\.\d\d s: \d+\.\d\d times as long, with the same text\n$", err)


@pytest.mark.parametrize(
    ("settings", "apart", "said"),
    [
        ((), 0.0, r"there two tokens were tied up to rounding \(0 logits apart\)"),
        ((), 50.0, r"where the two tokens are \d+ logits apart: more than rounding explains; please report it"),
        (("--temperature", 1), 50.0, "a random draw fell between two tokens, up to rounding"),
    ],
)
def test_compare_says_where_texts_differ_and_why(
    run: Run, drafter: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple, apart: float, said: str
) -> None:
    generate, logits = generating.generate, FrozenLM.next_token_logits

    def altered(lm: FrozenLM, *arguments: Any, **options: Any) -> Any:
        result = generate(lm, *arguments, **options)
        if options["drafter"] is None and len(result.ids) == 9:
            result.ids[3] = 0 if result.ids[3] else 1
        return result

    def tied(lm: FrozenLM, ids: torch.Tensor) -> torch.Tensor:
        if len(ids) != len(PROMPT) + 3:
            return logits(lm, ids)
        return torch.ones(len(ids), 1) + apart * (torch.arange(lm.vocabulary) > 1)

    monkeypatch.setattr(generating, "generate", altered)
    monkeypatch.setattr(FrozenLM, "next_token_logits", tied)
    command = ("generate", PROMPT, "--drafter", drafter, "--max-new-tokens", 9, "--compare", *settings)
    record = json.loads(run(*command, "--json")[1])
    assert (record["same_text"], record["first_difference"]) == (False, 3)
    err = run(*command)[2]
    assert "with the same text" not in err
    assert re.search(rf"\nnote: the texts differ after 3 tokens.*{said}\n$", err)


def test_a_stop_token_ends_the_text_and_is_no_part_of_it(run: Run, models_folder: Path, drafter: Path) -> None:
    lm = load_lm(str(models_folder / "tiny"))
    ids = lm.generate(lm.embed(lm.encode(PROMPT)).unsqueeze(0), 20)[0]
    stop = next(i for i in range(4, 20) if ids[i] not in ids[:i])
    settings = models_folder / "tiny" / "generation_config.json"
    before = settings.read_text()
    settings.write_text(json.dumps(json.loads(before) | {"eos_token_id": int(ids[stop])}))
    try:
        for name in (drafter, "none"):
            generate = ("generate", PROMPT, "--drafter", name, "--max-new-tokens", 20)
            _, out, err = run(*generate)
            assert err.endswith("s, ended by a stop token\n")
            record = json.loads(run(*generate, "--json")[1])
            assert (record["stopped"], record["tokens"]) == (True, stop + 1)
            assert out == record["text"] == lm.decode(ids[:stop])
    finally:
        settings.write_text(before)


def test_the_drafter_of_the_package_is_the_default(
    run: Run, models_folder: Path, drafter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "package" / "shipped" / "drafters"
    monkeypatch.setattr("prototokens.drafting.drafter.files", lambda _: tmp_path / "package")
    shipped = cache(_shipped.__wrapped__)
    monkeypatch.setattr("prototokens.drafting.drafter._shipped", shipped)
    generate = ("generate", PROMPT, "--max-new-tokens", 5)
    tiny = models_folder / "tiny"
    lacking = f"no drafter for {tiny} comes with the package"
    remedy = f"make one: prototokens drafter train --model {tiny} -o FILE"
    code, out, err = run(*generate)  # there is no such folder yet
    assert (code, out) == (0, plain_text(models_folder / "tiny", 5))
    assert err.endswith(f"\nnote: {lacking}, so that each pass wrote one token; {remedy}\n")
    for options in (("--drafter", "shipped"), ("--compare",)):
        code, out, err = run(*generate, *options)
        assert (code, out) == (2, "")
        assert err == f"error: {lacking}: name one (--drafter FILE), or {remedy}\n"
    folder.mkdir(parents=True)
    (folder / "tiny.safetensors").write_bytes(drafter.read_bytes())
    shipped.cache_clear()
    for options in ((), ("--drafter", "shipped")):
        assert json.loads(run(*generate, *options, "--json")[1])["drafter"] == load_drafter(drafter).name
    assert json.loads(run(*generate, "--drafter", "none", "--json")[1])["drafter"] is None


def test_a_model_without_attention_writes_one_token_a_pass(run: Run) -> None:
    code, out, err = run("generate", PROMPT, "--max-new-tokens", 4, model="mamba")
    assert (code, len(out) > 0) == (0, True)
    assert "4 tokens in 4 passes (1.00 a pass)" in err


@pytest.mark.parametrize(
    ("arguments", "model", "message"),
    [
        (("generate",), "tiny", "give one text"),
        (("generate", ""), "tiny", "the argument is empty"),
        (("generate", "ab", "--file", "x"), "tiny", "give one text"),
        (("generate", "--file", "x"), "tiny", "x: cannot be read (No such file"),
        (("generate", "ab", "--max-new-tokens", 0), "tiny", "max_new_tokens is 0; it must be at least 1"),
        (("generate", "ab", "--max-new-tokens", 64), "tiny", "at most 63 new tokens fit"),
        (("generate", "a" * 80), "tiny", "at most 0 new tokens fit"),
        (("generate", "ab", "--temperature", -1), "tiny", "temperature is -1.0; it must be 0 (greedy), or from"),
        (("generate", "ab", "--temperature", 1, "--seed", 2**64), "tiny", "seed is 18446744073709551616; it must be"),
        (("generate", "ab", "--temperature", 1, "--top-p", 0), "tiny", "top_p is 0.0; it must be above 0"),
        (("generate", "ab", "--temperature", 1, "--top-k", -1), "tiny", "top_k is -1"),
        (("generate", "ab", "--top-k", 3), "tiny", "give a --temperature above 0"),
        (("generate", "ab", "--tree-width", 0), "tiny", "width is 0"),
        (("generate", "ab", "--max-nodes", 0), "tiny", "max_nodes 0; both must be at least 1"),
        (("generate", "ab", "--compare", "--drafter", "none"), "tiny", "--compare is for generation with drafts"),
        (("generate", "ab", "--drafter", "nowhere"), "tiny", "nowhere: no such file"),
        (("generate", "ab", "--drafter", "DAMAGED"), "tiny", "DAMAGED"),
        (("generate", "ab", "--max-new-tokens", 5, "--drafter", "DRAFTER"), "other", "this drafter belongs to "),
        (("generate", "ab", "--max-new-tokens", 5, "--drafter", "OF MAMBA"), "mamba", "/mamba cannot verify drafts: "),
        (("drafter", "train", "-o", "o", "--source", "PROSE"), "mamba", "/mamba cannot verify drafts: "),
        (("drafter", "train", "-o", "o", "--source", "PROSE"), "tiny", "/tiny has 64"),
        (("drafter", "train", "-o", "o", "--source", "x.txt", *SMALL), "tiny", "no such file: x.txt"),
        (("drafter", "train", "-o", "o", "--steps", 0), "tiny", "steps is 0; it must be at least 1"),
        (("drafter", "train", "-o", "o", "--texts", 10), "tiny", "which batch_texts, 4, does not divide"),
        (("drafter", "train", "-o", "o", "--prompt-lengths", "4;8"), "tiny", "--prompt-lengths is '4;8'"),
        (("drafter", "train", "-o", "o", "--new-tokens", 3), "tiny", "4 drafts need at least 5"),
        (("drafter", "train", "-o", "o", "--lr", 0), "tiny", "lr is 0.0; it must be a positive number"),
        (("drafter", "train", "-o", "o", "--masks", 5), "tiny", "n_masks is 5 and n_drafts 4"),
        (("drafter", "train", "-o", "o", "--input-width", -1), "tiny", "input_width is -1"),
        (("drafter", "train", "-o", "o", "--vocabulary", -1), "tiny", "vocabulary is -1; it must be at least 0"),
        (("drafter", "train", "-o", "no/o"), "tiny", "there is no folder"),
        (("drafter", "train", "-o", "DAMAGED"), "tiny", "DAMAGED"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(
    run: Run, tmp_path: Path, models_folder: Path, drafter: Path, arguments: tuple, model: str, message: str
) -> None:
    damaged, of_mamba = tmp_path / "DAMAGED", tmp_path / "OF MAMBA"
    raw = drafter.read_bytes()
    damaged.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    save_drafter(of_mamba, replace(load_drafter(drafter), model=load_lm(str(models_folder / "mamba")).identity))
    names = {"DAMAGED": damaged, "OF MAMBA": of_mamba, "DRAFTER": drafter, "PROSE": prose_file(tmp_path)}
    before = {path.name for path in tmp_path.iterdir()}
    code, out, err = run(*(names.get(x, x) for x in arguments), model=model)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_training_resumes_after_a_signal_and_ends_the_same(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ("drafter", "train", "--source", prose_file(tmp_path), *SMALL, "--steps", 6)
    draft_at, calls = train_drafter.draft_at, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return draft_at(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(train_drafter, "draft_at", interrupted)
        assert run(*train, "-o", "parts") == (130, "", "interrupted\n")
    unfinished, state = read_drafter("parts")
    assert (unfinished.training["step"], len(calls), bool(state)) == (3, 3, True)
    code, out, err = run(*train, "-o", "parts")
    assert (code, err) == (0, "")
    shares = r"\d\.\d\d \d\.\d\d, about \d\.\d\d tokens a pass without a tree"
    assert re.match(rf"drafts accepted on unseen texts: {shares}\nsaved: ", out)
    assert run(*train, "-o", "straight")[0] == 0
    assert Path("parts").read_bytes() == Path("straight").read_bytes()


def test_a_training_that_has_ended_is_left_as_it_is(run: Run, tmp_path: Path) -> None:
    train = ("drafter", "train", "--source", prose_file(tmp_path), *SMALL, "-o", "mine")
    code, out, err = run(*train, "--steps", 2, "--json")
    record, saved = json.loads(out), Path("mine").read_bytes()
    assert (code, err) == (0, "")
    assert set(record) == {"file", "model", "drafter", "weights", "steps", "samples", "loss_nats", "acceptance",
                           "seconds"}  # fmt: skip
    drafter = load_drafter("mine")
    assert (record["drafter"], record["weights"], record["steps"]) == (drafter.name, drafter.n_weights, 2)
    assert (record["file"], tuple(map(tuple, record["acceptance"]))) == ("mine", drafter.acceptance)
    assert record["model"] == drafter.model.name
    again = json.loads(run(*train, "--steps", 2, "--json")[1])
    assert again == record | {"loss_nats": None, "seconds": 0.0}
    assert Path("mine").read_bytes() == saved
    code, _, err = run(*train, "--steps", 3)
    assert (code, err.count("\n")) == (2, 1)
    assert "was trained with other settings (steps): give the same, or begin anew (--force)" in err
    assert run(*train, "--steps", 3, "--force")[0] == 0
    assert load_drafter("mine").training["step"] == 3


def test_a_folder_of_texts_trains_a_drafter_that_generates(run: Run, tmp_path: Path, models_folder: Path) -> None:
    (tmp_path / "texts" / "more").mkdir(parents=True)
    prose_file(tmp_path / "texts" / "more")
    assert run("drafter", "train", "-o", "mine", "--source", "texts", *SMALL, "--steps", 1)[0] == 0
    code, out, _ = run("generate", PROMPT, "--drafter", "mine", "--max-new-tokens", 9)
    assert (code, out) == (0, plain_text(models_folder / "tiny", 9))


def test_the_defaults_of_the_command_are_the_library_s() -> None:
    assert DrafterOptions().config() == DrafterTraining()
    program: Any = typer.main.get_command(cli.app)
    defaults = {p.name: p.default for p in program.commands["generate"].params}
    tree = generating.DraftTree()
    assert (defaults["tree_width"], defaults["max_nodes"]) == (tree.width, tree.max_nodes)
    assert defaults["max_new_tokens"] == inspect.signature(generating.generate).parameters["max_new_tokens"].default


def metaspace_lm() -> FrozenLM:
    """A model whose tokenizer leaves out the space before a text's first word, as that of Llama 2 does."""
    vocabulary = {word: i for i, word in enumerate(["▁a", "b", "▁c", "é", "\n", "▁"])}
    fast = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="b"))
    fast.decoder = decoders.Metaspace()
    return FrozenLM(build("llama"), PreTrainedTokenizerFast(tokenizer_object=fast))


@given(st.lists(st.integers(0, 255), max_size=40), st.sampled_from(["bytes", "words"]))
def test_the_pieces_of_a_stream_are_the_text(ids: list[int], kind: str) -> None:
    lm = family("llama") if kind == "bytes" else METASPACE
    new = torch.tensor(ids if kind == "bytes" else [i % 6 for i in ids], dtype=torch.long)
    pieces: list[str] = []
    stream = TextStream(lm, [], pieces.append)
    stream.put(torch.zeros(1, 3, dtype=torch.long))
    for token in new.split(1):
        stream.put(token)
    stream.end()
    assert "".join(pieces) == lm.decode(new)


def test_a_piece_of_a_stream_holds_whole_characters() -> None:
    lm = family("llama")
    pieces: list[str] = []
    stream = TextStream(lm, [256], pieces.append)
    stream.put(lm.encode("€").unsqueeze(0))
    for token in [*lm.encode("€ a\né"), torch.tensor(256)]:
        stream.put(token.unsqueeze(0))
    assert pieces == ["€", " ", "a", "\n", "é"]
    stream.end()
    assert len(pieces) == 5


quiet_libraries()
METASPACE = metaspace_lm()
