"""Scales: how large a study is, and which texts and models it is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..errors import InputError
from .published import MODELS

PAPER_SOURCES = ("random", "old", "recent", "generated")
"""The paper's kinds of text: random words, old prose, prose later than the model, and the model's own."""

CONTINUED = "continued"
"""A further kind: several texts of the model's own for each context that they continue."""


@dataclass(frozen=True)
class Scale:
    """The texts that all studies of a scale share: each is drawn once, at full length, and others are its prefixes.

    Attributes:
        name: smoke, laptop or paper.
        length: of the drawn texts in tokens, at least the longest that a grid asks for.
        context_tokens: length of the old prose that generated texts continue.
        counts: how many texts are drawn of each kind.
        per_context: how many of the kind `CONTINUED`, after one another, continue the same context.
        corpora: where the texts of each kind come from: a name or file that `texts.sample` takes.
        models: the models that are studied if none is named.
        pass_gigabytes: memory beside the weights for which the passes of fits are planned, on any machine: what is free
            has no say in which texts pass together, and so none in how a fit is rounded.
        shorter: full length of the kinds of which no grid asks for longer texts: what a model writes costs its time.
    """

    name: str
    length: int
    context_tokens: int
    counts: Mapping[str, int]
    per_context: int
    corpora: Mapping[str, str]
    models: tuple[str, ...]
    pass_gigabytes: int
    shorter: Mapping[str, int] = field(default_factory=dict)

    def length_of(self, kind: str) -> int:
        """Full length of the texts of one kind, in tokens."""
        return self.shorter.get(kind, self.length)

    def with_corpora(self, **corpora: str | None) -> Scale:
        """The same scale with the texts of some kinds from elsewhere; None leaves a kind as it is."""
        changed = {kind: corpus for kind, corpus in corpora.items() if corpus is not None}
        return replace(self, corpora={**self.corpora, **changed})


_BUNDLED = {**{source: source for source in PAPER_SOURCES}, CONTINUED: "generated"}
_BUILT_IN = ("smollm2-135m",)


def _counts(*counts: int) -> dict[str, int]:
    return dict(zip((*PAPER_SOURCES, CONTINUED), counts, strict=True))


SCALES = {
    scale.name: scale
    for scale in (
        Scale("smoke", 24, 16, _counts(4, 4, 4, 4, 4), 2, _BUNDLED, _BUILT_IN, 4),
        Scale(
            "laptop",
            1024,
            64,
            _counts(4, 16, 4, 4, 18),
            3,
            _BUNDLED,
            _BUILT_IN,
            4,
            {"generated": 128, CONTINUED: 32},
        ),
        Scale(
            "paper",
            1448,
            64,
            _counts(66, 256, 66, 66, 500),
            10,
            _BUNDLED | {"old": "pg19", "recent": "fanfics"},
            tuple(MODELS.values()),
            48,
        ),
    )
}


def scale_named(name: str) -> Scale:
    """The scale of that name.

    Raises:
        InputError: there is none.
    """
    if name not in SCALES:
        raise InputError(f"unknown scale {name!r}; choose one of: {' '.join(SCALES)}")
    return SCALES[name]
