"""The commands to begin with: demo and models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .exits import DONE, NOT_EXACT
from .options import Json, ModelOptions
from .spread import add_command
from .terminal import fit_progress, print_json, say

PANEL = "First steps"
first_steps_app = typer.Typer()


@add_command(first_steps_app, "demo", PANEL)
def demo_command(
    model: ModelOptions,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files.")] = Path("demo-output"),
    as_json: Json = False,
) -> int:
    """Fit three sentences, decode them, and time decoding.

    Decoding in one pass is timed beside greedy generation with a KV cache.

    Exit code 0: all sentences are reproduced exactly. 1: not all are, within three minutes of fitting.
    """
    from .demo import print_demo, run_demo

    lm = model.load()
    if not as_json:
        say(f"Fitting three sentences on {lm.identity.name} ...", flush=True)
    with fit_progress() as show:
        record = run_demo(lm, output, show)
    if as_json:
        print_json(record)
    else:
        print_demo(record)
    return DONE if all(sentence["exact"] for sentence in record["sentences"]) else NOT_EXACT


@add_command(first_steps_app, "models", PANEL)
def models_command(as_json: Json = False) -> int:
    """List the models that can be loaded here without a network."""
    from ..lm.sources import available

    models = available()
    if as_json:
        print_json({"models": [{"name": name, "note": about} for name, about in models]})
        return DONE
    for name, about in models:
        say(f"{name:40}{about}")
    say("Any Hub id, folder with safetensors weights, or .gguf file of a causal LM can be given as --model.")
    return DONE
