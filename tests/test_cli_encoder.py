"""`encode` and `encoder`: their JSON, their exit codes, and one line for every mistake."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from encoders import CONFIG, prose_file, random_encoder
from families import save_model
from prototokens import load, load_lm, read_archive
from prototokens.cli import app as cli
from prototokens.encoder.encoding import Encoder

QUICK = ("--batch-positions", 12, "--set", "texts.validation_texts=2", "--set", "encoder.width=16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model("llama", path)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_encoder(load_lm(str(folder))).save_pretrained(tmp_path_factory.mktemp("encoders") / "mine")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, folder: Path):
    """Run the command line in an empty folder: exit code, stdout, and stderr without loading and progress."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prototokens", *map(str, arguments), "--model", str(folder)])
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        return stop.value.code, out, "".join(x for x in err.splitlines(True) if not x.startswith(("loading", "step ")))

    return call


def test_encode_has_the_fields_of_fit(run, encoder: Path) -> None:
    fitted = json.loads(run("fit", "abcd", "--max-steps", 0, "-o", "a", "--json")[1])
    code, out, err = run("encode", "abcd", "--encoder", encoder, "-o", "b", "--json")
    record = json.loads(out)
    assert list(record) == list(fitted)
    assert (code, err) == (0 if record["exact"] else 1, "")
    assert (record["text"], record["steps"], record["backward_positions"], record["file"]) == ("abcd", 0, 0, "b")
    provenance = load("b").provenance
    assert provenance.token_accuracy == record["token_accuracy"]
    assert provenance.start == Encoder.from_pretrained(encoder).name
    assert json.loads(run("decode", "b", "--json")[1])["exact"] == record["exact"]


def test_refinement_mends_what_the_encoder_missed(run, encoder: Path) -> None:
    code, out, _ = run("encode", "ab", "--encoder", encoder, "--refine", 300, "--json")
    record = json.loads(out)
    assert (code, record["exact"], record["stop_reason"]) == (0, True, "accuracy")
    assert 0 < record["steps"] <= 300
    assert record["file"].startswith("proto-")
    assert run("decode", record["file"])[:2] == (0, "ab")


def test_encode_takes_texts_of_any_length_a_vector_for_each_block(run, encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "long").write_text("An old man went home to his bread and his books.")
    record = json.loads(run("encode", "--file", "long", "--encoder", encoder, "-o", "b", "--json")[1])
    assert (record["length"], record["e_tokens"], record["vectors"]) == (48, 24, 25)
    assert record["bytes"] == 25 * load("b").e.shape[1] * 4
    assert record["text_bytes"] == 48
    assert json.loads(run("decode", "b", "--json")[1])["exact"] == record["exact"]


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> str:
    """The name of an encoder for the model that comes with the package."""
    encoder = random_encoder(load_lm(str(folder)), seed=7)
    encoder.save_pretrained(tmp_path / "package" / "shipped" / "encoders" / "tiny")
    monkeypatch.setattr("prototokens.encoder.encoding.files", lambda _: tmp_path / "package")
    return encoder.name


def test_every_command_takes_the_encoder_of_the_package_by_name(run, shipped: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("ab")
    named = ("--encoder", "shipped", "--json")
    assert run("encode", "ab", *named, "-o", "e")[0] in (0, 1)
    assert load("e").provenance.start == shipped
    _, out, _ = run("encoder", "eval", "--sources", prose_file(tmp_path), "--lengths", 2, "--texts", 2, *named)
    assert json.loads(out)["encoder"] == shipped
    _, out, _ = run("encode-all", "docs/a.txt", "-o", "t.parquet", *named)
    assert json.loads(out)["encoder"] == shipped
    assert run("pack", "docs/a.txt", "-o", "a", "--effort", "instant", *named)[0] == 0
    assert run("pack-all", "docs", "-o", "p", "--effort", "fast", *named)[0] == 0
    assert [read_archive(path).packing["start"] for path in ("a", "p/a.txt.proto")] == [shipped] * 2
    assert run("view", "--text", "ab", "-o", "page.html", *named[:2])[0] == 0
    train = ("encoder", "train", "-o", "o", "--source", prose_file(tmp_path), "--lengths", 2, "--steps", 1, *QUICK[:4])
    assert run(*train, "--begin", "shipped")[0] == 0
    assert Encoder.from_pretrained("o").config == CONFIG  # of the encoder that it begins at


def test_a_folder_trains_an_encoder_and_a_learned_start(run, tmp_path: Path) -> None:
    (tmp_path / "texts" / "more").mkdir(parents=True)
    prose_file(tmp_path / "texts" / "more")
    (tmp_path / "texts" / "a.md").write_text("# Notes\n\nOne sentence stands here. Another one follows it.\n")
    code, out, err = run("encoder", "train", "-o", "o", "--source", "texts", "--lengths", "2,4", "--steps", 1, *QUICK)
    assert (code, err) == (0, "")
    assert "saved: o (step 1, " in out
    code, out, err = run("starter", "train", "-o", "s", "--source", "texts", "--lengths", 4, "--steps", 1,
                         "--inner-steps", 1, "--batch-tokens", 8)  # fmt: skip
    assert (code, err) == (0, "")


def test_encode_reads_stdin_and_files_and_cuts(run, encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abcdefgh")
    for arguments, stdin in (("--file", "text"), b""), (("-",), b"abcdefgh"):
        code, out, _ = run("encode", *arguments, "--tokens", 3, "--encoder", encoder, "--force", "--json", stdin=stdin)
        assert code in (0, 1)
        assert json.loads(out)["text"] == "abc"
    code, out, _ = run("encode", "abc", "--encoder", encoder, "-o", "c")
    assert "of 3 tokens come back in one forward pass" in out
    assert "0 steps" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("encode", "a" * 80, "--encoder", "ENCODER"), "a text of 80 tokens needs 81 positions"),
        (("encode", "ab"), "comes with the package: name one (--encoder PATH), or make one"),
        (("encode", "ab", "--encoder", "nowhere"), "unknown encoder 'nowhere': no such folder"),
        (("encode", "ab", "--encoder", "ENCODER", "--refine", -1), "--refine is -1; it must be at least 0"),
        (("encode", "ab", "--encoder", "ENCODER", "--tokens", 0), "--tokens is 0; it must be at least 1"),
        (("encode", "ab", "--encoder", "ENCODER", "--preset", "quick"), "unknown preset 'quick'"),
        (("encode", "ab", "--encoder", "ENCODER", "-o", "no/file"), "there is no folder"),
        (("encode",), "give one text"),
        (("encoder", "eval", "--encoder", "ENCODER", "--lengths", "x"), "it must be numbers of tokens such as"),
        (("encoder", "eval", "--encoder", "ENCODER", "--controls", "x"), "unknown control 'x'; choose one of: encoder"),
        (("encoder", "eval", "--encoder", "ENCODER", "--texts", 1), "--texts is 1; it must be at least 2"),
        (("encoder", "train", "-o", "o", "--set", "x"), "must be NAME=VALUE"),
        (("encoder", "train", "-o", "o", "--set", "encoder.x=1"), "unknown setting 'x'; choose one of: block_length"),
        (("encoder", "train", "-o", "o", "--set", "encoder.trunk=x", "--source", "PROSE"), "unknown trunk 'x'"),
        (("encoder", "train", "-o", "o", "--steps", 0), "steps is 0; it must be at least 1"),
        (("encoder", "train", "-o", "o", "--lengths", "4,64"), "has 64; choose shorter texts (--lengths)"),
        (("encoder", "train", "-o", "o", "--lengths", "4;8"), "--lengths is '4;8'; it must be numbers of tokens"),
        (("encoder", "train", "-o", "o", "--lengths", "0"), "lengths are [0]; give numbers of tokens from 1 to"),
        (("encoder", "train", "-o", "o", "--block-length", 0), "block_length is 0; it must be at least 1"),
        (("encoder", "train", "-o", "o", "--optimiser", "sgd"), "unknown optimiser 'sgd'; choose one of: adamw muon"),
        (("encoder", "eval", "--encoder", "ENCODER", "--lengths", "2,65"), "has 64; ask for shorter texts (--lengths)"),
        (("encoder", "eval", "--encoder", "ENCODER", "--lengths", "0"), "a text of 0 tokens"),
        (("encoder", "train", "-o", "o", "--minutes", 0), "--minutes is 0; it must be above 0"),
        (("encoder", "train", "-o", "o", "--source", "x.txt", "--lengths", 4), "no such file: x.txt"),
        (("encoder", "train", "-o", "o", "--start", "x"), "x: no such file"),
        (("encoder", "train", "-o", "o", "--start", "x", "--begin", "y"), "give --start or --begin, not both"),
    ],
)
def test_mistakes_are_one_line(run, encoder: Path, tmp_path: Path, arguments: tuple, message: str) -> None:
    names = {"ENCODER": encoder, "PROSE": prose_file(tmp_path)}
    code, out, err = run(*(names.get(x, x) for x in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err


def test_train_goes_on_where_it_was_stopped(run, tmp_path: Path) -> None:
    train = ("encoder", "train", "--block-length", 2, "--lengths", "2,3", "--source", prose_file(tmp_path), *QUICK)
    code, out, err = run(*train, "-o", "straight", "--steps", 4, "--json")
    whole = json.loads(out)
    assert (code, err, whole["step"]) == (0, "", 4)
    assert whole["validation"]["windows"]["3"].keys() == {"token_accuracy", "exact_match", "loss"}
    assert json.loads(run(*train, "-o", "parts", "--steps", 4, "--minutes", 1e-9, "--json")[1])["step"] == 1
    code, out, _ = run(*train, "-o", "parts", "--steps", 4)
    assert "accuracy" in out
    assert "saved: parts (step 4, " in out
    assert Encoder.from_pretrained("parts").name == Encoder.from_pretrained("straight").name == whole["encoder"]
    code, _, err = run(*train, "-o", "parts", "--steps", 4, "--seed", 1)
    assert code == 2
    assert "its training had other settings (beginning, seed)" in err
    assert run(*train, "-o", "parts", "--steps", 1, "--seed", 1, "--force")[0] == 0
    code, out, _ = run("encoder", "train", "-o", "more", "--begin", "straight", "--source", tmp_path / "prose.txt",
                       "--lengths", 4, "--optimiser", "muon", "--steps", 1, *QUICK[:4], "--json")  # fmt: skip
    assert json.loads(out)["step"] == 1
    assert Encoder.from_pretrained("more").training["begun_at"]["step"] == 4


def test_eval_scores_the_encoder_beside_its_controls(run, encoder: Path, tmp_path: Path) -> None:
    arguments = ("encoder", "eval", "--encoder", encoder, "--sources", prose_file(tmp_path), "--lengths", "2,3")
    code, out, err = run(*arguments, "--texts", 3, "--json")
    record = json.loads(out)
    assert (code, err) == (0, "")
    assert record["encoder"] == Encoder.from_pretrained(encoder).name
    assert len(record["scores"]) == 2 * 2 * 4
    assert {(row["block_length"], row["length"]) for row in record["scores"]} == {(2, 2), (2, 3)}
    _, out, _ = run(*arguments, "--texts", 3, "--controls", "encoder", "--starts", "sentence")
    assert [line.split()[1:5] for line in out.splitlines()] == [
        ["sentence", "encoder", "2", "tokens"],
        ["sentence", "encoder", "3", "tokens"],
    ]
