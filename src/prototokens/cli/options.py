"""Groups of options that several commands share: a model, a text, a recipe, a runner."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..lm.names import BUILT_IN
from .terminal import note, read_text

if TYPE_CHECKING:
    from ..encoder.encoding import Encoder
    from ..fitting.recipes import FitConfig
    from ..fitting.starter import Starter
    from ..lm.frozen import FrozenLM
    from ..runners.work import Runner

MODEL_PANEL, RECIPE_PANEL, RUNNER_PANEL = "Model", "Recipe", "Where it runs"

Force = Annotated[bool, typer.Option("--force", help="Overwrite the output file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")]
Seed = Annotated[int, typer.Option(help="Seed of all random draws.")]
Preset = Annotated[str, typer.Option(help="The recipe: fast, tuned or paper.", rich_help_panel=RECIPE_PANEL)]
SHIPPED = "shipped"
"""How `--encoder` names the one in the package."""
EncoderName = Annotated[
    str | None, typer.Option(help="An encoder: a folder, a Hub id, or shipped (the default).", metavar="PATH")
]
ChunkEncoderName = Annotated[
    str | None,
    typer.Option(
        help="Begin every chunk at this encoder's vectors: a folder, a Hub id, or shipped. Default: none, "
        "but shipped for instant.",
        metavar="PATH",
        rich_help_panel=RECIPE_PANEL,
    ),
]
BatchTokens = Annotated[
    int | None, typer.Option(help="Tokens per batch; default: as many as memory allows.", metavar="N")
]


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded, whichever it is."""

    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit, for a Hub id.", rich_help_panel=MODEL_PANEL)
    ] = None
    dtype: Annotated[
        str,
        typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16.", rich_help_panel=MODEL_PANEL),
    ] = "auto"
    device: Annotated[
        str | None, typer.Option(help="Device of the model: cpu, cuda, cuda:1, mps ...", rich_help_panel=MODEL_PANEL)
    ] = None
    device_map: Annotated[
        str | None,
        typer.Option(help="Spread a large model over devices: auto, balanced ...", rich_help_panel=MODEL_PANEL),
    ] = None
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run the Python code in the model's repository. Only for repositories that you trust.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = False

    def load(self, name: str) -> FrozenLM:
        """Load a model, with a line on stderr in a terminal, since it can take a while."""
        from ..lm.loading import load_lm, quiet_libraries

        quiet_libraries()
        if sys.stderr.isatty():
            note(f"loading {name}")
        return load_lm(
            name,
            revision=self.revision,
            dtype=self.dtype,
            device=self.device,
            device_map=self.device_map,
            trust_remote_code=self.trust_remote_code,
        )


@dataclass(frozen=True)
class ModelOptions:
    """Which model a command works with."""

    model: Annotated[
        str,
        typer.Option(
            help="smollm2-135m (built in), a Hub id, a folder, or a .gguf file.",
            metavar="MODEL",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = BUILT_IN
    loading: LoadOptions = LoadOptions()

    def load(self) -> FrozenLM:
        """Load the model."""
        return self.loading.load(self.model)


@dataclass(frozen=True)
class FileModelOptions:
    """The model that a file belongs to, or the place that the user names instead."""

    model: Annotated[
        str | None,
        typer.Option(
            help="Where the model is now, if it is not where the file says.",
            metavar="MODEL",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None
    loading: LoadOptions = LoadOptions()


@dataclass(frozen=True)
class TextOptions:
    """One text: an argument, a file or stdin."""

    text: Annotated[str | None, typer.Argument(help="The text; - reads it from stdin.")] = None
    file: Annotated[Path | None, typer.Option(help="Read the text from this UTF-8 file.")] = None
    n_tokens: Annotated[
        int | None, typer.Option("--tokens", help="Keep only the text's first N tokens.", metavar="N")
    ] = None

    def read(self) -> str:
        """The text, not yet cut to its first tokens.

        Raises:
            InputError: there is no text, or it cannot be read, or `n_tokens` is out of bounds.
        """
        content = read_text(self.text, self.file)
        check_tokens(self.n_tokens)
        return content


@dataclass(frozen=True)
class RecipeOptions:
    """How one text is fitted."""

    preset: Preset = "fast"
    start: Annotated[
        str | None,
        typer.Option(
            help="auto, normal, vocabulary, text-e, text-m, or a file of a learned start; default: the preset's.",
            rich_help_panel=RECIPE_PANEL,
        ),
    ] = None
    arrangement: Annotated[
        str | None,
        typer.Option(
            help="How e and m fill the input: e*n  e*n/2,m*n/2  (e,m)*n/2  e,m*n  e,m*(n-1)  m,e,m*(n-1)  "
            "bos,e,m*(n-1)  bos,e,m*n  m,(e,m*7): blocks of 8 tokens; default: the preset's.",
            rich_help_panel=RECIPE_PANEL,
        ),
    ] = None
    e_tokens: Annotated[
        int | None,
        typer.Option(
            help="Number of e-tokens; the paper has 1. Default: 1 up to 32 tokens, then one per block.",
            rich_help_panel=RECIPE_PANEL,
        ),
    ] = None
    tokens_per_vector: Annotated[
        int | None,
        typer.Option(
            help="Tokens per block, each with an e-token of its own; default: 8 beyond 32 tokens.",
            rich_help_panel=RECIPE_PANEL,
        ),
    ] = None
    restarts: Annotated[
        int,
        typer.Option(
            help="Number of starts that are fitted side by side; the best is kept.", rich_help_panel=RECIPE_PANEL
        ),
    ] = 1
    max_steps: Annotated[
        int | None, typer.Option(help="Maximum number of steps; default: the preset's.", rich_help_panel=RECIPE_PANEL)
    ] = None
    margin: Annotated[
        float | None,
        typer.Option(
            help="Lead in logits that every token must reach; default: the preset's.", rich_help_panel=RECIPE_PANEL
        ),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of all random draws.", rich_help_panel=RECIPE_PANEL)] = 0

    def config(self) -> FitConfig:
        """The recipe that these options make of the preset.

        Raises:
            InputError: one of them is out of bounds, or unknown.
        """
        from ..fitting.recipes import preset

        if self.e_tokens is not None and self.tokens_per_vector is not None:
            raise InputError("--e-tokens and --tokens-per-vector both set the number of e-tokens: give one of them")
        config = preset(self.preset, restarts=self.restarts, seed=self.seed)
        if self.e_tokens is not None:
            config = replace(config, e_tokens=self.e_tokens, tokens_per_vector=None)
        if self.tokens_per_vector is not None:
            config = replace(config, tokens_per_vector=self.tokens_per_vector)
        if self.start is not None:
            config = replace(config, start=start_named(self.start))
        stop = config.stop
        stop = stop if self.max_steps is None else replace(stop, max_steps=self.max_steps)
        stop = stop if self.margin is None else replace(stop, margin=self.margin)
        return replace(config, stop=stop, arrangement=self.arrangement or config.arrangement)


@dataclass(frozen=True)
class RunnerOptions:
    """Where the work runs: in this process, or on Ray."""

    ray: Annotated[
        str | None,
        typer.Option(
            help="Run on Ray: local, or a cluster's address.", metavar="local|ADDRESS", rich_help_panel=RUNNER_PANEL
        ),
    ] = None
    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of Ray workers, each with a model; default: all that fit.", rich_help_panel=RUNNER_PANEL
        ),
    ] = None
    gpus: Annotated[float, typer.Option(help="GPUs per Ray worker.", rich_help_panel=RUNNER_PANEL)] = 0
    threads: Annotated[
        int | None,
        typer.Option(
            help="Number of CPU threads; default: torch's, or 1 for a Ray worker.", rich_help_panel=RUNNER_PANEL
        ),
    ] = None

    def check(self) -> None:
        """Refuse options that make no runner, before anything is written.

        Raises:
            InputError: one is out of bounds, or for Ray alone.
        """
        for option, value in (("--workers", self.workers), ("--threads", self.threads)):
            if value is not None and value < 1:
                raise InputError(f"{option} is {value}; it must be at least 1")
        if not 0 <= self.gpus < float("inf"):
            raise InputError(f"--gpus is {self.gpus:g}; it must be at least 0")
        if self.ray is None and (self.workers is not None or self.gpus):
            raise InputError("--workers and --gpus are for Ray: give --ray local or --ray ADDRESS")

    def runner(self, model: ModelOptions) -> Runner:
        """A runner of work on the model; workers with GPUs put it there unless told otherwise."""
        loading = model.loading
        if self.gpus and loading.device is None and loading.device_map is None:
            model = replace(model, loading=replace(loading, device="cuda"))
        if self.ray is None:
            import torch

            from ..runners.in_process import InProcess

            if self.threads is not None:
                torch.set_num_threads(self.threads)
            return InProcess(model.load)
        from ..runners.on_ray import RayRunner

        address = None if self.ray == "local" else self.ray
        return RayRunner(model.load, address=address, workers=self.workers, gpus=self.gpus, threads=self.threads or 1)


def check_tokens(n_tokens: int | None) -> None:
    """Refuse a number of tokens to keep that is below one."""
    if n_tokens is not None and n_tokens < 1:
        raise InputError(f"--tokens is {n_tokens}; it must be at least 1")


def numbers(option: str, text: str, example: str) -> tuple[int, ...]:
    """The numbers of tokens in a list with commas.

    Raises:
        InputError: it is no such list.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} is {text!r}; it must be numbers of tokens such as {example}") from None


def start_named(start: str) -> str | Starter:
    """A start by its name, or the learned start in a file.

    Raises:
        InputError: it is neither.
    """
    from ..fitting.recipes import NAMED_STARTS
    from ..fitting.starter import load_starter

    if start in NAMED_STARTS:
        return start
    if not Path(start).exists():
        raise InputError(f"unknown start {start!r}: no such file, and none of: {' '.join(NAMED_STARTS)}")
    return load_starter(start)


def load_encoder(name: str | None) -> Encoder | None:
    """The encoder in a folder or on the Hub; None where none is named, or the one in the package."""
    from ..encoder.encoding import Encoder

    return None if name is None or name == SHIPPED else Encoder.from_pretrained(name)


def encoder_for(lm: FrozenLM, encoder: Encoder | None) -> Encoder:
    """The encoder that was named, or the shipped one; refused before work if it belongs to another model."""
    from ..encoder.encoding import shipped_encoder

    encoder = encoder or shipped_encoder(lm.identity)
    encoder.check(lm.identity)
    return encoder
