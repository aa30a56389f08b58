"""Scales: how large a study is, and which texts and models it is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..errors import InputError
from ..published import MODELS

SOURCES = ("random", "old", "recent", "generated")
"""The paper's kinds of text: random words, old prose, prose later than the model, and the model's own."""


@dataclass(frozen=True)
class Scale:
    """The texts that all studies of a scale share: each is drawn once, at full length, and shorter ones are prefixes.

    Attributes:
        name: smoke, laptop or paper.
        tokens: length of the drawn texts, at least the longest that a grid asks for.
        context_tokens: length of the old prose that generated texts continue.
        counts: how many texts are drawn of each kind.
        corpora: where the texts of each kind come from: a name or file that `texts.sample` takes.
        models: the models that are studied if none is named.
    """

    name: str
    tokens: int
    context_tokens: int
    counts: Mapping[str, int]
    corpora: Mapping[str, str]
    models: tuple[str, ...]

    def with_corpora(self, **corpora: str | None) -> Scale:
        """The same scale with the texts of some kinds from elsewhere; None leaves a kind as it is."""
        changed = {kind: corpus for kind, corpus in corpora.items() if corpus is not None}
        return replace(self, corpora={**self.corpora, **changed})


_BUNDLED = {source: source for source in SOURCES}
_BUILT_IN = ("smollm2-135m",)

SCALES = {
    scale.name: scale
    for scale in (
        Scale("smoke", 24, 16, {"random": 2, "old": 4, "recent": 2, "generated": 2}, _BUNDLED, _BUILT_IN),
        Scale("laptop", 96, 64, {"random": 4, "old": 16, "recent": 4, "generated": 4}, _BUNDLED, _BUILT_IN),
        Scale(
            "paper",
            1448,
            64,
            {"random": 50, "old": 256, "recent": 50, "generated": 50},
            _BUNDLED | {"old": "pg19", "recent": "fanfics"},
            tuple(MODELS.values()),
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
