"""The command that decodes along a path between the vectors of two texts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .exits import DONE
from .file_model import load_file_model
from .options import FileModelOptions, Json
from .spread import add_command
from .terminal import fit_progress, print_json, say

if TYPE_CHECKING:
    from torch import Tensor

    from ..geometry.curves import ConnectConfig, Connection
    from ..geometry.paths import Path as Curve
    from ..lm.frozen import FrozenLM
    from ..proto_tokens import ProtoTokens

CURVE_PANEL = "A fitted curve"
path_app = typer.Typer()

_MOST_POINTS, _MOST_INNER = 100_000, 1000
_ENDS = ("first", "last")
_COST = ("steps", "token_positions", "backward_positions", "seconds", "stop_reason")
"""Fields of a fitted curve; null for a segment."""


@add_command(path_app, "path", "One text")
def path_command(
    first: Annotated[Path, typer.Argument(help="A file that fit wrote: the vectors at tau = 0.")],
    last: Annotated[Path, typer.Argument(help="Another one: the vectors at tau = 1.")],
    model: FileModelOptions,
    points: Annotated[int, typer.Option(help="Number of points to decode, evenly spaced.", metavar="N")] = 11,
    begin: Annotated[float, typer.Option("--from", help="The first point; below 0 is before FIRST.")] = 0.0,
    end: Annotated[float, typer.Option("--to", help="The last point; above 1 is beyond LAST.")] = 1.0,
    vectors: Annotated[str, typer.Option(help="Which vectors move: both, e or m. The other stays.")] = "both",
    fit: Annotated[
        bool,
        typer.Option(
            "--fit",
            help="Fit a curve on which every point decodes to the text of which FIRST and LAST are solutions.",
            rich_help_panel=CURVE_PANEL,
        ),
    ] = False,
    kind: Annotated[
        str, typer.Option(help="bezier, or chain (straight pieces).", rich_help_panel=CURVE_PANEL)
    ] = "bezier",
    inner: Annotated[
        int, typer.Option(help="Control points between the ends.", metavar="N", rich_help_panel=CURVE_PANEL)
    ] = 1,
    max_steps: Annotated[int, typer.Option(help="Maximum number of steps.", rich_help_panel=CURVE_PANEL)] = 500,
    seed: Annotated[int, typer.Option(help="Seed of all random draws.", rich_help_panel=CURVE_PANEL)] = 0,
    as_json: Json = False,
) -> int:
    """Decode points on a path between the vectors of two texts.

    The path is the line FIRST + tau (LAST - FIRST), or with --fit a curve. Each point is printed with its tau and its
    text, and with the shares of its tokens that agree with what FIRST and LAST decode to.

    Example: prototokens path friend.safetensors another.safetensors --from -0.5 --to 1.5 --points 9
    """
    from ..geometry.paths import segment
    from ..geometry.profiles import even_taus
    from ..proto_tokens import load

    for option, value, least, most in (("--points", points, 2, _MOST_POINTS), ("--inner", inner, 1, _MOST_INNER)):
        if not least <= value <= most:
            raise InputError(f"{option} is {value}; it must be at least {least} and at most {most}")
    if not (math.isfinite(begin) and math.isfinite(end)):
        raise InputError(f"--from is {begin:g} and --to {end:g}; both must be numbers")
    if begin >= end:
        raise InputError(f"--from is {begin:g} and --to {end:g}; --from must be below --to")
    if not fit and (kind, inner, max_steps, seed) != ("bezier", 1, 500, 0):
        raise InputError("--kind, --inner, --max-steps and --seed are for curves that are fitted: give --fit too")
    config = _config(kind, inner, max_steps, seed, vectors) if fit else None
    ends = load(first), load(last)
    straight = segment(*ends, vectors)  # type: ignore[arg-type]
    if fit and not _of_one_text(ends):
        raise InputError("--fit needs two solutions of one text, and these files hold two texts: leave it out")
    lm, _ = load_file_model(model, ends[0].provenance.model, first)
    connection = None if config is None else _connect(lm, ends, config)
    curve = straight if connection is None else connection.path
    record = _record(lm, ends, curve, even_taus(points, begin, end), vectors == "both") | {
        "kind": curve.kind,
        "vectors": vectors,
        "length": curve.length(),
        "ratio": curve.ratio,
        **{name: getattr(connection, name, None) for name in _COST},
        "model": lm.identity.name,
    }
    if as_json:
        print_json(record)
    else:
        _print(record)
    return DONE


def _config(kind: str, inner: int, max_steps: int, seed: int, vectors: str) -> ConnectConfig:
    from ..geometry.curves import ConnectConfig

    if vectors != "both":
        raise InputError(f"--fit joins solutions, which are both vectors together: not with --vectors {vectors}")
    if kind == "segment":
        raise InputError("a segment has nothing to fit: leave out --fit, or choose --kind bezier or chain")
    return ConnectConfig(kind=kind, inner=inner, max_steps=max_steps, seed=seed)  # type: ignore[arg-type]


def _connect(lm: FrozenLM, ends: tuple[ProtoTokens, ProtoTokens], config: ConnectConfig) -> Connection:
    from ..geometry.connecting import connect_pairs

    with fit_progress() as show:
        return connect_pairs(lm, [ends], config, progress=show)[0]


def _of_one_text(ends: tuple[ProtoTokens, ProtoTokens]) -> bool:
    return ends[0].provenance.target_hash == ends[1].provenance.target_hash


def _record(
    lm: FrozenLM, ends: tuple[ProtoTokens, ProtoTokens], curve: Curve, taus: Tensor, moves_both: bool
) -> dict[str, Any]:
    """What is decoded along the path; between two solutions of one text, also how much of the text is lost."""
    from ..decoding import decode
    from ..geometry.profiles import profile

    texts = decode(lm, list(ends), scores=False)
    scores = [profile(lm, curve, taus, text.ids) for text in texts]
    points = [
        {"tau": tau, "text": lm.decode(ids)}
        | {f"token_accuracy_{end}": share for end, share in zip(_ENDS, accuracies, strict=True)}
        | {f"loss_{end}": loss for end, loss in zip(_ENDS, losses, strict=True)}
        for tau, ids, accuracies, losses in zip(
            taus.tolist(),
            scores[0].ids,
            zip(*(score.token_accuracy.tolist() for score in scores), strict=True),
            zip(*(score.loss_nats.tolist() for score in scores), strict=True),
            strict=True,
        )
    ]
    exact = next((score for score, text in zip(scores, texts, strict=True) if text.exact), None)
    joins_solutions = moves_both and _of_one_text(ends) and taus[[0, -1]].tolist() == [0, 1]
    whole = exact if joins_solutions else None
    return {
        "points": points,
        "same_text": _of_one_text(ends),
        "lowest_accuracy": whole.lowest_accuracy if whole else None,
        "barrier": whole.barrier if whole else None,
    }


def _print(record: dict[str, Any]) -> None:
    """The same for people: a line for each point, and a summary."""
    say("    tau  as first  as last  text")
    for point in record["points"]:
        shares = f"{point['token_accuracy_first']:8.3f} {point['token_accuracy_last']:8.3f}"
        say(f"{point['tau']:7.3f}  {shares}  {json.dumps(point['text'], ensure_ascii=False)}")
    length = f"{record['kind']}: length {record['length']:.2f}"
    if not record["length"]:
        length += ", its ends are the same"
    elif record["kind"] != "segment":
        length += f", {record['ratio']:.3f} times that of the segment"
    say(length)
    if record["barrier"] is not None:
        say(f"lowest accuracy {record['lowest_accuracy']:.3f}, barrier {record['barrier']:.3f} nats per token")
    if record["steps"] is not None:
        say(f"fitted in {record['steps']} steps, {record['seconds']:.1f} s; ended by: {record['stop_reason']}")
