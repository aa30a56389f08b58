"""The documentation is true: its code runs, its commands parse, its tables and errors are those of the library."""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from safetensors import safe_open

import prototokens
from encoders import PROSE
from families import family, save_model
from prototokens import AdamW, FitConfig, FrozenLM, fit, load_lm, preset, save
from prototokens.archive.efforts import EFFORTS, Effort
from prototokens.arrangements import ARRANGEMENTS, arrangement_named
from prototokens.cli import app as cli
from prototokens.cli import demo
from prototokens.drafting.drafter import Drafter
from prototokens.fitting.recipes import PRESETS
from prototokens.lm.identity import Identity
from prototokens.lm.sources import _BUILT_IN_SHA256, BUILT_IN
from prototokens.texts.corpora import SOURCES, Document

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README, COMMANDS, OWN_MODEL = ROOT / "README.md", DOCS / "commands.md", DOCS / "howto" / "own-model.md"
METHOD = DOCS / "method"
GUIDES = [OWN_MODEL, *sorted(page for page in (DOCS / "howto").glob("*.md") if page != OWN_MODEL), README, COMMANDS]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
LOADABLE = (BUILT_IN, "EleutherAI/pythia-160m", "./my-model")
"""The models that the pages load; a tiny one stands in for each."""
SHORTER = {
    "encoder train": "--steps 1",
    "starter train": "--steps 1",
    "generate": "--max-new-tokens 8",
    "drafter train": "--steps 1 --prompt-lengths 4 --new-tokens 8 --texts 4",
}
"""What is added to commands of the pages, so that they end soon."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def rows(page: Path, heading: str) -> list[list[str]]:
    """Cells of the table whose first heading that is."""
    table = re.search(rf"^\| {re.escape(heading)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", page.read_text(), re.MULTILINE)
    assert table, f"{page.name} has no table with the heading {heading!r}"
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()]


def json_rows() -> list[list[str]]:
    """The table of the commands' JSON fields."""
    table = re.search(r"^\| command \| fields \|\n\|[-|]+\n((?:\|.*\n)+)", COMMANDS.read_text(), re.MULTILINE)
    assert table
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[1].splitlines()]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Every `prototokens` command of a page with the lines of output that it quotes."""
    quoted: list[tuple[str, list[str]]] = []
    for line in "".join(blocks(page, "console")).splitlines():
        if line.startswith("$ "):
            quoted.append((line.removeprefix("$ "), []))
        else:
            quoted[-1][1].append(line)
    return [(command, output) for command, output in quoted if command.startswith("prototokens ")]


def tiny_lm(name: str = BUILT_IN, **options: Any) -> FrozenLM:
    """A tiny model under the name of a real one; what is not in the README is looked for as ever."""
    if name not in LOADABLE:
        return load_lm(name, **options)
    known = family("llama")
    identity = Identity(name, None, _BUILT_IN_SHA256 if name == BUILT_IN else "0" * 64, known.identity.tokenizer_hash)
    return FrozenLM(known.model, known.tokenizer, identity)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty folder, tiny models, and presets that run a few steps: that the examples run is what is tested."""
    monkeypatch.chdir(tmp_path)
    for name, config in PRESETS.items():
        monkeypatch.setitem(PRESETS, name, replace(config, stop=replace(config.stop, max_steps=5)))
    for name, effort in EFFORTS.items():
        monkeypatch.setitem(EFFORTS, name, replace(effort, steps=5))
    for user in ("fitting.starts", "encoder.encoding", "geometry.connecting"):
        monkeypatch.setattr(f"prototokens.{user}.shipped_starter", lambda *_: None)  # of the real models' width
    monkeypatch.setattr("prototokens.drafting.drafter._shipped", lambda: (Drafter.untrained(tiny_lm()),))
    speech = Document("a speech", 1901, PROSE * 3, "train")  # all speeches take a minute, byte by byte
    monkeypatch.setattr("prototokens.encoder.training.texts.stream", lambda *_: [speech])
    monkeypatch.setattr(prototokens, "load_lm", tiny_lm)
    monkeypatch.setattr("prototokens.lm.loading.load_lm", tiny_lm)


Run = Callable[[str], tuple[int, str, list[str]]]


@pytest.fixture
def run(few_steps: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command line: exit code, stdout, and the lines of stderr but those on loading and progress."""

    def call(command: str) -> tuple[int, str, list[str]]:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"A text.")))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        return stop.value.code, out, [x for x in err.splitlines() if not x.startswith(("loading ", "step "))]

    return call


WITH_PYTHON = [page for page in GUIDES if blocks(page, "python")]


def test_most_guides_show_python() -> None:
    assert {README, OWN_MODEL} < set(WITH_PYTHON)
    assert len(WITH_PYTHON) >= 5


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.name)
def test_python_blocks_of_a_page_run_one_after_another(few_steps: None, page: Path) -> None:
    namespace: dict[str, Any] = {}
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(block, f"{page.name}, Python block {number}", "exec"), namespace)
    assert namespace["lm"].identity.name in LOADABLE


def test_the_tutorial_runs(few_steps: None, capsys: pytest.CaptureFixture[str]) -> None:
    cells = json.loads((DOCS / "tutorial.ipynb").read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 8
    namespace: dict[str, Any] = {}
    for number, cell in enumerate(code):
        exec(compile("".join(cell["source"]), f"tutorial.ipynb, cell {number}", "exec"), namespace)
        printed = capsys.readouterr().out
        assert bool(printed) == bool(cell["outputs"]), f"cell {number}: run the notebook anew"
    assert namespace["result"].steps <= 5


def test_commands_of_the_guides_parse() -> None:
    calls = [shlex.split(command)[1:] for page in GUIDES for command, _ in commands(page)]
    program: Any = typer.main.get_command(cli.app)
    with program.make_context("prototokens", [], resilient_parsing=True) as context:
        assert {words[0] for words in calls} == set(program.list_commands(context))
        for words in calls:
            command = program
            while hasattr(command, "list_commands"):
                command = command.get_command(context, words.pop(0))
            command.make_context(command.name, words, parent=context)


@pytest.mark.parametrize("page", [page for page in GUIDES if commands(page)], ids=lambda page: page.name)
def test_commands_of_a_page_run_and_their_errors_are_these(run: Run, tmp_path: Path, page: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear reader, nothing here is shifted.")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("Dear.")
    (tmp_path / "sentences.txt").write_text("ab\ncd\n")
    errors = 0
    for command, quoted in commands(page):
        if command.endswith(" demo"):  # its sentences are longer than a tiny model's positions
            continue
        if " encode " in command and "--encoder" not in command:  # the shipped encoder is the real model's
            continue
        added = [options for name, options in SHORTER.items() if command.startswith(f"prototokens {name} ")]
        code, out, err = run(" ".join([command, *added]))
        expected = [line for line in quoted if line.startswith("error: ")]
        errors += len(expected)
        if expected:
            assert (code, out, len(err)) == (2, "", 1), command
            assert fnmatchcase(err[0], expected[0].replace("[", "[[]").replace("...", "*")), (expected[0], err[0])
        else:
            assert code in (0, 1), (command, err)
            if "--json" in command:
                json.loads(out)
    assert errors == page.read_text().count("\nerror: ")
    assert errors >= 4 or page != COMMANDS


def test_json_fields_of_the_page_are_the_ones_printed(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SENTENCES", ("ab", "cd"))
    (tmp_path / "letter.txt").write_text("Dear reader.")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("Dear.")
    (tmp_path / "letters" / "bad.txt").write_bytes(b"\xff")
    (tmp_path / "prose.txt").write_text(PROSE)
    (tmp_path / "sentences.txt").write_text("ab\n" + 70 * "longer than the model")
    table = {named(command)[0]: set(named(fields)) for command, fields in json_rows()}
    table["encode"] = table["fit"]
    calls = {
        "fit": "fit ab -o file",
        "demo": "demo",
        "decode": "decode file",
        "inspect": "inspect file",
        "models": "models",
        "path": "path file file",
        "pack": "pack letter.txt -o letter.proto",
        "unpack": "unpack letter.proto -o again.txt",
        "verify": "verify letter.proto",
        "pack-all": "pack-all letters -o packed --effort fast",
        "fit-all": "fit-all sentences.txt -o fitted",
        "encoder train": "encoder train -o mine --steps 1 --block-length 2 --lengths 2 --batch-positions 6",
        "encode": "encode ab --encoder mine -o encoded",
        "encode-all": "encode-all sentences.txt --encoder mine -o table",
        "encoder eval": "encoder eval --encoder mine --sources letter.txt --starts anywhere --lengths 2 --texts 2",
        "drafter train": f"drafter train -o drafter {SHORTER['drafter train']} --source prose.txt",
        "generate": "generate ab --drafter drafter --max-new-tokens 4 --compare",
        "starter train": "starter train -o starter --steps 1 --inner-steps 1 --lengths 2 --batch-tokens 2",
    }
    assert set(table) == set(calls)
    for name, call in calls.items():
        record = json.loads(run(f"prototokens {call} --json")[1])
        nested = {
            key
            for name in ("models", "files", "failed", "points", "passed_over")
            for key in (record.get(name) or [{}])[0]
        }
        assert set(record) | nested == table[name], name


def effort_row(name: str, effort: Effort) -> list[str]:
    """The page's row about an effort."""
    whose_m = "own" if effort.own_m else "shared"
    numbers = (effort.tokens_per_vector, effort.steps, effort.tolerated_share, effort.margin, effort.chunk_tokens)
    return [f"`{name}`", *(f"{number:g}" for number in numbers), whose_m]


def test_efforts_of_the_page_are_the_library_s() -> None:
    assert rows(METHOD / "archives.md", "effort") == [effort_row(name, effort) for name, effort in EFFORTS.items()]


def settings(adamw: AdamW) -> str:
    words = f"lr {adamw.lr:g}" + (" × std of the embeddings" if adamw.relative else "") + f", betas {adamw.betas}"
    words += f", annealed below {adamw.anneal_below_nats:g} nats" if adamw.anneal_below_nats else ""
    return words + (f", weight decay {adamw.weight_decay:g}" if adamw.weight_decay else "")


def preset_row(config: FitConfig) -> list[str]:
    """The page's row about a preset."""
    assert not isinstance(config.arrangement, str)
    stop = config.stop
    start = f"`{config.start}`" + (f", perturbation {config.perturbation:g}" if config.perturbation else "")
    rate = settings(config.optimiser)
    if config.axes_optimiser is not None:
        rate = f"along learned axes {settings(config.axes_optimiser)}; where there are none {rate}"
    end = f"exact, margin above {stop.margin:g}" if stop.margin else "exact"
    assert stop.accuracy == 1
    return [f"`{config.preset}`", f"`{config.arrangement.name}`", start, rate, f"{end}; at most {stop.max_steps} steps"]


def test_presets_of_the_page_are_the_library_s() -> None:
    assert rows(METHOD / "fitting.md", "preset") == [preset_row(config) for config in PRESETS.values()]
    assert f"By default a fit asks for {preset().stop.margin:g} logits" in (DOCS / "tutorial.ipynb").read_text("utf-8")


def spelt_out(name: str) -> tuple[str, int, int]:
    arrangement = ARRANGEMENTS[name]
    layout = arrangement.layout(4)
    return " ".join(("e", "m", *arrangement.fixed)[s] for s in layout.slots), layout.first, len(layout.slots)


def test_arrangements_are_spelt_out_as_the_library_lays_them_out() -> None:
    in_method = [(named(row[0])[0], *row[1:]) for row in rows(METHOD / "formalism.md", "arrangement")]
    assert in_method == [(name, *map(str, spelt_out(name))) for name in ARRANGEMENTS]
    in_guide = [(named(row[0])[0], row[1]) for row in rows(OWN_MODEL, "arrangement")]
    assert in_guide == [(name, spelt_out(name)[0]) for name in ARRANGEMENTS]


def test_blocks_are_spelt_out_as_the_library_lays_them_out() -> None:
    for cells in rows(METHOD / "formalism.md", "arrangement | input for T = 7"):
        arrangement = arrangement_named(named(cells[0])[0])
        layout, k = arrangement.layout(7), arrangement.n_e_tokens(7)
        names = [*(f"e_{number + 1}" for number in range(k)), "m"]
        assert cells[1:] == [" ".join(names[slot] for slot in layout.slots), str(k)]


def test_sources_of_the_guide_are_the_library_s() -> None:
    sentence = re.search(r"exact number of tokens from (.*?), or a\sfile", OWN_MODEL.read_text(), re.DOTALL)
    assert sentence
    assert set(named(sentence[1])) == set(SOURCES)


def test_fields_of_the_file_are_those_of_the_page(tmp_path: Path) -> None:
    lm = family("llama")
    path = save(tmp_path / "file", fit(lm, lm.encode("ab"), preset("paper", stop=prototokens.Stop(max_steps=0))).tokens)
    with safe_open(path, framework="pt") as file:
        (key,), header = file.metadata(), json.loads(next(iter(file.metadata().values())))
    assert f"`{key}`" in (METHOD / "files.md").read_text()
    described = {named(row[0])[0]: set(named(row[1])) for row in rows(METHOD / "files.md", "field")}

    def keys(value: Any) -> set[str]:
        # `versions` maps libraries to versions, so that its keys are no fields.
        nested = [v for k, v in value.items() if isinstance(v, dict) and k != "versions"]
        return set(value).union(*map(keys, nested))

    assert set().union(described, *described.values()) == keys(header)


def test_stop_reasons_and_starts_are_named_on_the_page() -> None:
    reasons = {named(row[0])[0] for row in rows(METHOD / "fitting.md", "stop_reason")}
    documented = re.search(r"stop_reason: (.*?)\n\s*\"\"\"", prototokens.FitResult.__doc__ + '\n"""', re.DOTALL)
    assert documented
    assert reasons == set(re.findall(r'"(\w+)"', documented[1]))
    for start in prototokens.fitting.recipes.NAMED_STARTS:
        assert f'"{start}"' in (METHOD / "fitting.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_local_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            slugs += [f"prototokens.{module}.{name}" for module, names in prototokens._HOME.items() for name in names]
            assert anchor in slugs, f"{page.name} links to {target}"


def test_targets_of_make_in_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        code = "\n".join([*re.findall(r"`([^`]+)`", page.read_text()), *blocks(page, ""), *blocks(page, "console")])
        assert set(re.findall(r"^(?:\$ )?make ([a-z-]+)", code, re.MULTILINE)) <= targets, page.name


def test_the_page_on_the_command_line_is_generated() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "typer", "prototokens.cli.app", "utils", "docs", "--name", "prototokens"],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert (ROOT / "docs" / "cli.md").read_text().strip() == made.stdout.strip(), "run: make docs"


def test_the_example_runs(
    few_steps: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prototokens, "load_lm", load_lm)
    save_model("llama", tmp_path / "tiny")
    monkeypatch.setattr(sys, "argv", ["own_model.py", str(tmp_path / "tiny")])
    capsys.readouterr()
    runpy.run_path(str(ROOT / "examples" / "own_model.py"), run_name="__main__")
    first, *_ = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\d+% of 36 tokens after 5 steps, ended by: steps", first)
