"""The command that decodes along a path between the vectors of two texts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from .terminal import Device, DeviceMap, Dtype, Json, Revision, TrustRemoteCode, load_needed, print_json, show_progress

if TYPE_CHECKING:
    from torch import Tensor

    from ..geometry.curves import ConnectConfig, Connection
    from ..geometry.paths import Path as Curve
    from ..lm.frozen import FrozenLM
    from ..proto_tokens import ProtoTokens

path_app = typer.Typer()

_ENDS = ("first", "last")
_COST = ("steps", "token_positions", "backward_positions", "seconds", "stop_reason")
"""Fields of a fitted curve; null for a segment."""


@path_app.command("path")
def path_command(
    first: Annotated[Path, typer.Argument(help="A file that fit wrote: the vectors at tau = 0.")],
    last: Annotated[Path, typer.Argument(help="Another one: the vectors at tau = 1.")],
    points: Annotated[int, typer.Option(help="How many places are decoded, evenly spaced.", metavar="N")] = 11,
    begin: Annotated[float, typer.Option("--from", help="The first place; below 0 is before FIRST.")] = 0.0,
    end: Annotated[float, typer.Option("--to", help="The last place; above 1 is beyond LAST.")] = 1.0,
    vectors: Annotated[str, typer.Option(help="What moves: both, e or m; the other stays that of FIRST.")] = "both",
    fit: Annotated[
        bool, typer.Option("--fit", help="Fit a curve that keeps to the text, for two solutions of one text.")
    ] = False,
    kind: Annotated[str, typer.Option(help="With --fit: bezier, or chain of straight pieces.")] = "bezier",
    inner: Annotated[int, typer.Option(help="With --fit: control points between the ends.", metavar="N")] = 1,
    max_steps: Annotated[int, typer.Option(help="With --fit: step budget.")] = 500,
    seed: Annotated[int, typer.Option(help="With --fit: what random draws are made from.")] = 0,
    model: Annotated[
        str | None, typer.Option(help="Where the model lies, if not where the file says.", metavar="MODEL")
    ] = None,
    revision: Revision = None,
    dtype: Dtype = "auto",
    device: Device = None,
    device_map: DeviceMap = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: Json = False,
) -> int:
    """Decode vectors on the way from those of one text to those of another: FIRST + tau (LAST - FIRST).

    At each place: tau, the shares of tokens that are those FIRST and LAST decode to, and what is decoded.

    Example: prototokens path friend.safetensors another.safetensors --from -0.5 --to 1.5 --points 9
    """
    from ..geometry.paths import segment
    from ..geometry.profiles import even_taus
    from ..proto_tokens import load

    if points < 2:
        raise InputError(f"--points is {points}; it must be at least 2")
    if not (math.isfinite(begin) and math.isfinite(end)):
        raise InputError(f"--from is {begin:g} and --to {end:g}; both must be numbers")
    if begin >= end:
        raise InputError(f"--from is {begin:g} and --to {end:g}; --from must be below --to")
    if not fit and (kind != "bezier" or inner != 1):
        raise InputError("--kind and --inner are for curves that are fitted: give --fit too")
    config = _config(kind, inner, max_steps, seed, vectors) if fit else None
    ends = load(first), load(last)
    straight = segment(*ends, vectors)  # type: ignore[arg-type]
    if fit and not _of_one_text(ends):
        raise InputError("--fit needs two solutions of one text, and these files hold two texts: leave it out")
    needed = ends[0].provenance.model
    lm, _, _ = load_needed(needed, first, model, revision, dtype, device, device_map, trust_remote_code)
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
    return 0


def _config(kind: str, inner: int, max_steps: int, seed: int, vectors: str) -> ConnectConfig:
    from ..geometry.curves import ConnectConfig

    if vectors != "both":
        raise InputError(f"--fit joins solutions, which are both vectors together: not with --vectors {vectors}")
    if kind == "segment":
        raise InputError("a segment has nothing to fit: leave out --fit, or choose --kind bezier or chain")
    return ConnectConfig(kind=kind, inner=inner, max_steps=max_steps, seed=seed)  # type: ignore[arg-type]


def _connect(lm: FrozenLM, ends: tuple[ProtoTokens, ProtoTokens], config: ConnectConfig) -> Connection:
    from ..geometry.connecting import connect_pairs

    with show_progress() as show:
        return connect_pairs(lm, [ends], config, progress=show)[0]


def _of_one_text(ends: tuple[ProtoTokens, ProtoTokens]) -> bool:
    return ends[0].provenance.target_hash == ends[1].provenance.target_hash


def _record(
    lm: FrozenLM, ends: tuple[ProtoTokens, ProtoTokens], curve: Curve, taus: Tensor, moves_both: bool
) -> dict[str, Any]:
    """What is decoded along the way; from one solution of a text to another, also how much of it is lost."""
    from ..decoding import decode
    from ..geometry.profiles import profile

    texts = decode(lm, list(ends))
    scores = [profile(lm, curve, taus, text.ids) for text in texts]
    points = [
        {"tau": tau, "text": lm.decode(ids)}
        | {f"token_accuracy_{end}": share for end, share in zip(_ENDS, accuracies, strict=True)}
        | {f"loss_{end}": loss for end, loss in zip(_ENDS, losses, strict=True)}
        for tau, ids, accuracies, losses in zip(
            taus.tolist(),
            scores[0].ids,
            zip(*(score.token_accuracy.tolist() for score in scores), strict=True),
            zip(*(score.loss.tolist() for score in scores), strict=True),
            strict=True,
        )
    ]
    right = next((score for score, text in zip(scores, texts, strict=True) if text.exact), None)
    joins_solutions = moves_both and _of_one_text(ends) and taus[[0, -1]].tolist() == [0, 1]
    whole = right if joins_solutions else None
    return {
        "points": points,
        "same_text": _of_one_text(ends),
        "lowest_accuracy": whole.lowest_accuracy if whole else None,
        "barrier": whole.barrier if whole else None,
    }


def _print(record: dict[str, Any]) -> None:
    """The same for people: a line for each place, and what came of it."""
    print("    tau  as first  as last  text")
    for point in record["points"]:
        shares = f"{point['token_accuracy_first']:8.3f} {point['token_accuracy_last']:8.3f}"
        print(f"{point['tau']:7.3f}  {shares}  {json.dumps(point['text'], ensure_ascii=False)}")
    ratio = f"{record['ratio']:.3f} times that of the segment"
    print(f"{record['kind']}: length {record['length']:.2f}, {ratio if record['length'] else 'its ends are the same'}")
    if record["barrier"] is not None:
        print(f"lowest accuracy {record['lowest_accuracy']:.3f}, barrier {record['barrier']:.3f} nats per token")
    if record["steps"] is not None:
        print(f"fitted in {record['steps']} steps, {record['seconds']:.1f} s; ended by: {record['stop_reason']}")
