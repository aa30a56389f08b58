"""Paths between the vectors of two solutions: control points, and the curve that they define."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..arrangements import Layout
from ..errors import InputError
from ..lm.identity import Identity, same_model
from ..proto_tokens import ProtoTokens

PathKind = Literal["segment", "bezier", "chain"]
PATH_KINDS: tuple[PathKind, ...] = ("segment", "bezier", "chain")

Vectors = Literal["both", "e", "m"]
VECTORS: tuple[Vectors, ...] = ("both", "e", "m")

_LENGTH_POINTS = 1000


@dataclass(frozen=True, eq=False)
class Path:
    """A curve through the space of proto-tokens, defined by P control points.

    phi(tau) = sum over j = 0 ... P-1 of w_j(tau) p_j        tau = 0 is the first end, tau = 1 the last

    `segment` (P = 2) and `bezier`: w_j = C(P-1, j) tau^j (1 - tau)^(P-1-j), a polynomial of degree P - 1. `chain`:
    P - 1 straight pieces from control point to control point, each a (P-1)-th of tau. Outside of [0, 1] the polynomial,
    or the outer piece, continues.

    Attributes:
        kind: one of `PATH_KINDS`.
        e: control points of the e-tokens, float32, (P, K, D).
        m: control points of the m-token, float32, (P, D).
        layout: the arrangement at the length T of the text.
        fixed: the arrangement's fixed vectors, float32, (F, D).
        model: the language model that the vectors belong to.
        target_ids: the text of both ends, int64, (T,); None where they are of two texts, or it is not known.

    Reference: Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs (Garipov et al., 2018), section 3.2,
    https://arxiv.org/abs/1802.10026.
    """

    kind: PathKind
    e: Tensor
    m: Tensor
    layout: Layout
    fixed: Tensor
    model: Identity
    target_ids: Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in PATH_KINDS:
            raise InputError(f"unknown kind of path {self.kind!r}; choose one of: {' '.join(PATH_KINDS)}")
        if self.e.ndim != 3 or self.m.shape != (self.e.shape[0], self.e.shape[2]):
            raise InputError(
                f"e is {tuple(self.e.shape)} and m {tuple(self.m.shape)}; they must be (P, K, D) and (P, D)"
            )
        points = len(self.m)
        if points < 2 or (self.kind == "segment" and points > 2):
            needed = "2" if self.kind == "segment" else "at least 2"
            raise InputError(f"a {self.kind} of {points} control points; it needs {needed}")

    def point(self, tau: float) -> tuple[Tensor, Tensor]:
        """The vectors at one tau: e (K, D) and m (D,), float32."""
        e, m = self.points(torch.tensor([tau], dtype=torch.float64))
        return e[0], m[0]

    def points(self, taus: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors at several taus (N,): e (N, K, D) and m (N, D), float32."""
        weights = curve_weights(self.kind, len(self.m), taus.double()).to(self.m)  # (N, P)
        return torch.einsum("np,pkd->nkd", weights, self.e), weights @ self.m

    def inputs_embeds(self, taus: Tensor) -> Tensor:
        """The inputs of one forward pass at taus (N,): (N, L, D), float32."""
        return self.layout.inputs_embeds(*self.points(taus), self.fixed)

    def length(self) -> float:
        """Euclidean length of the curve of (e, m), concatenated: the integral over tau from 0 to 1 of |phi'(tau)|."""
        steps = self._flat().diff(dim=0)  # (P-1, (K+1) D)
        if self.kind != "bezier":
            return steps.norm(dim=-1).sum().item()
        # phi' is itself a Bezier curve. Its control points are the differences of these, times the degree.
        taus = (torch.arange(_LENGTH_POINTS, dtype=torch.float64) + 0.5) / _LENGTH_POINTS
        weights = curve_weights("bezier", len(steps), taus).to(steps)
        squares = ((weights @ (steps @ steps.T)) * weights).sum(-1)
        return len(steps) * squares.clamp(min=0).sqrt().mean().item()

    @property
    def ratio(self) -> float:
        """Length over that of the straight segment between the ends; not a number where the ends are the same."""
        flat = self._flat()
        distance = (flat[-1] - flat[0]).norm().item()
        return self.length() / distance if distance else math.nan

    def reversed(self) -> Path:
        """The same curve, from its last end to its first."""
        return replace(self, e=self.e.flip(0), m=self.m.flip(0))

    def _flat(self) -> Tensor:
        """Control points with e and m concatenated, float64, (P, (K+1) D)."""
        return torch.cat([self.e.flatten(1), self.m], dim=1).double()


def curve_weights(kind: PathKind, points: int, taus: Tensor) -> Tensor:
    """Weights of P = `points` control points at taus (...), of their dtype, (..., P); they sum to 1."""
    degree = points - 1
    if kind == "chain":
        taus = taus.unsqueeze(-1)  # (..., 1)
        piece = (taus * degree).floor().clamp(0, degree - 1)
        share = taus * degree - piece
        weights = taus.new_zeros(*taus.shape[:-1], points)
        return weights.scatter(-1, piece.long(), 1 - share).scatter(-1, piece.long() + 1, share)
    return torch.stack([math.comb(degree, j) * taus**j * (1 - taus) ** (degree - j) for j in range(points)], dim=-1)


def segment(first: ProtoTokens, last: ProtoTokens, vectors: Vectors = "both") -> Path:
    """The straight path between the vectors of two texts, or of two solutions of one text.

    Texts of different lengths are decoded at the longer one's length. A causal model predicts the shorter one's tokens
    first.

    Args:
        first: proto-tokens at tau = 0.
        last: proto-tokens at tau = 1.
        vectors: which vectors move. With `"e"` or `"m"` alone the other stays as in `first`.

    Raises:
        InputError: the two are not of one model and arrangement.
    """
    if vectors not in VECTORS:
        raise InputError(f"vectors is {vectors!r}; it must be one of: {' '.join(VECTORS)}")
    _check_alike(first, last)
    e_last, m_last = first.e if vectors == "m" else last.e, first.m if vectors == "e" else last.m
    return Path(
        kind="segment",
        e=torch.stack([first.e, e_last]),
        m=torch.stack([first.m, m_last]),
        layout=first.arrangement.layout(max(first.length, last.length), first.e.shape[0]),
        fixed=first.fixed,
        model=first.provenance.model,
    )


def straight(path: Path, kind: PathKind, points: int) -> Path:
    """The straight path between a path's ends, as a curve of that kind with `points` evenly spaced control points."""
    taus = torch.linspace(0, 1, points, dtype=torch.float64)
    ends = replace(path, kind="segment", e=path.e[[0, -1]], m=path.m[[0, -1]])
    e, m = ends.points(taus)
    return replace(path, kind=kind, e=e, m=m)


def _check_alike(first: ProtoTokens, last: ProtoTokens) -> None:
    models = first.provenance.model, last.provenance.model
    if not same_model(*models):
        names = " and ".join(f"{model.name} (weights {model.fingerprint[:12]})" for model in models)
        raise InputError(f"a path needs proto-tokens of one model; these belong to {names}")
    for what, a, b in (
        ("arrangement", first.arrangement.name, last.arrangement.name),
        ("number of e-tokens", first.e.shape[0], last.e.shape[0]),
    ):
        if a != b:
            raise InputError(f"a path needs proto-tokens of one {what}; these have {a!r} and {b!r}")
    if first.arrangement != last.arrangement or not torch.equal(first.fixed, last.fixed):
        raise InputError(
            f"a path needs proto-tokens of one arrangement; these have two by the name of {first.arrangement.name!r}, "
            "or other fixed vectors"
        )
    if first.arrangement.tiling == "blocks" and first.length != last.length:
        raise InputError(
            f"texts of {first.length} and {last.length} tokens stand at other places in {first.arrangement.name!r}: "
            "a path needs texts of one length there"
        )
