"""The way between two texts as a scene: what the vectors on the straight line between theirs decode to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..decoding import decode
from ..geometry.paths import segment
from ..geometry.profiles import even_taus, profile
from ..lm.frozen import FrozenLM
from ..lm.pieces import pieces
from ..proto_tokens import ProtoTokens
from .scenes import Curve, Film, Lane, Mark, Scene

MARKS = {
    "B": Mark("as in both texts", "grey", "double"),
    "F": Mark("as in the first text", "blue-3"),
    "L": Mark("as in the last text", "orange-2", "dash"),
    "N": Mark("as in neither", "plain", "dots"),
}
_SECONDS = 8.0


def scene_of_way(
    lm: FrozenLM, first: ProtoTokens, last: ProtoTokens, n_points: int = 41, names: tuple[str, str] = ("", "")
) -> Scene:
    """The scene of the straight way between the vectors of two texts, at `n_points` evenly spaced tau from 0 to 1.

    Raises:
        InputError: the two are not of one model and arrangement.
    """
    way, taus = segment(first, last), even_taus(n_points)
    ends = [decoded.ids for decoded in decode(lm, [first, last], scores=False)]
    profiles = [profile(lm, way, taus, ids) for ids in ends]
    shares = [p.token_accuracy.tolist() for p in profiles]
    ids = profiles[0].ids  # (N, T)
    length = ids.shape[1]
    status = [
        f"tau {tau:.3f}: {a:.0%} of the first text's tokens, {b:.0%} of the last one's; "
        f"loss {x:.2f} and {y:.2f} nats per token."
        for tau, a, b, x, y in zip(
            taus.tolist(), *shares, *(p.loss_nats.tolist() for p in profiles), strict=True
        )
    ]  # fmt: skip
    film = Film(
        name="",
        lanes=[Lane("", [_padded(pieces(lm, row), length) for row in ids], [_marks(row, ends) for row in ids])],
        status=status,
        slider="tau",
        ticks=[f"{tau:.3f}" for tau in taus.tolist()],
        seconds=_SECONDS,
        curves=[
            Curve("share of the first text's tokens", shares[0], 1.0),
            Curve("share of the last text's tokens", shares[1], 1.0),
        ],
        scale="share of tokens",
    )
    same = first.provenance.target_hash == last.provenance.target_hash
    words = [
        f"The vectors first + tau (last - first) of {lm.identity.name}, each decoded in one pass.",
        *([f"From {names[0]} to {names[1]}."] if all(names) else []),
        *_of_two_lengths(len(ends[0]), len(ends[1])),
    ]
    caption = (
        "The whole way: tau runs down from 0 to 1, positions across. The solid line is the share of the first text's "
        "tokens, the dashed one that of the last one's."
    )
    return Scene(
        "path", "The way between two solutions" if same else "The way between two texts", words, [film], MARKS, caption
    )


def _of_two_lengths(first: int, last: int) -> list[str]:
    if first == last:
        return []
    return [f"The texts have {first} and {last} tokens; the way is decoded at the longer length."]


def _padded(texts: list[str], length: int) -> list[str]:
    return texts + [""] * (length - len(texts))


def _marks(ids: Tensor, ends: Sequence[Tensor]) -> str:
    """A letter for each decoded token of (T,): whether the ends' texts have it at its place."""
    agrees = [[t < len(end) and int(end[t]) == token for t, token in enumerate(ids.tolist())] for end in ends]
    return "".join("NLFB"[2 * first + last] for first, last in zip(*agrees, strict=True))
