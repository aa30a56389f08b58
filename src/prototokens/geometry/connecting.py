"""connect: a curve of low loss between two solutions of one text, by descent over its inner control points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..decoding import check_model, decode
from ..errors import InputError
from ..fitting.checks import check_texts
from ..fitting.descent import FitProgress
from ..fitting.starter import shipped_starter
from ..fitting.starts import learned_axes
from ..lm.frozen import FrozenLM
from ..lm.identity import hash_ids
from ..proto_tokens import ProtoTokens
from .curves import ConnectConfig, Connection, CurveDescent
from .paths import Path, segment, straight


def connect(
    lm: FrozenLM,
    first: ProtoTokens,
    last: ProtoTokens,
    config: ConnectConfig | None = None,
    target_ids: Tensor | None = None,
) -> Path:
    """Fit a curve of low loss between two solutions of one text; see `connect_pairs`, which joins many in one batch.

    Args:
        lm: the frozen model.
        first: the solution at tau = 0.
        last: that at tau = 1, of the same text and arrangement.
        config: how; the default if None.
        target_ids: the text, int64, (T,); read from whichever of the two decodes to it if None.

    Returns:
        The best curve that was looked at, whether it keeps to the text everywhere or not: `profile` tells.

    Raises:
        InputError: as `connect_pairs`.
    """
    target = None if target_ids is None else target_ids.unsqueeze(0)
    return connect_pairs(lm, [(first, last)], config, target)[0].path


@torch.inference_mode(False)
@torch.enable_grad()
def connect_pairs(
    lm: FrozenLM,
    pairs: Sequence[tuple[ProtoTokens, ProtoTokens]],
    config: ConnectConfig | None = None,
    target_ids: Tensor | None = None,
    *,
    progress: Callable[[FitProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Connection]:
    """Fit curves between pairs of solutions, all in one batch.

    minimise over the inner control points of phi:  E over tau ~ F of the mean over i of -log P(t_i | phi(tau))

    The ends are held. A curve begins as the straight segment, its control points evenly spaced. Every `check_every`
    steps its whole way is looked at: of what was looked at the curve of the highest lowest accuracy is kept, then of
    the lowest highest loss; one that meets the stopping rule is done and leaves the batch. F is uniform for the share
    1 - focus and follows the loss of the last look for the rest. Places depend on the seed and the curve's own losses,
    not on the batch.

    Args:
        lm: the frozen model.
        pairs: solutions; the two of a pair are of one text, and all texts have one length and arrangement.
        config: how; the default if None.
        target_ids: the text of each pair, int64, (B, T); read from whichever of the two decodes to it if None.
        progress: called at every look; its loss is the mean over curves of the highest, its accuracy of the lowest.
        should_stop: asked at every look; when it says yes, the best so far is returned as `"interrupted"`.

    Returns:
        One connection per pair, in order.

    Raises:
        InputError: two of a pair are not of one model, text and arrangement, the pairs do not fit into one batch, or
            neither of a pair decodes to its text and no target is given.

    Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025),
    figure 7, https://arxiv.org/abs/2505.21189.
    """
    config = config or ConnectConfig()
    if not pairs:
        return []
    if target_ids is not None and len(target_ids) != len(pairs):
        raise InputError(f"target_ids is {tuple(target_ids.shape)}; it must be ({len(pairs)}, T), one text per pair")
    points = 2 if config.kind == "segment" else config.inner + 2
    for first, last in pairs:
        _check_pair(lm, first, last)
    targets = _texts(lm, pairs) if target_ids is None else list(target_ids)
    paths = [
        replace(straight(segment(first, last), config.kind, points), target_ids=_checked(first, ids))
        for (first, last), ids in zip(pairs, targets, strict=True)
    ]
    if any(path.layout != paths[0].layout for path in paths):
        raise InputError("pairs of one batch need texts of one length and one arrangement: connect the others apart")
    check_texts(lm, torch.stack(targets), paths[0].layout)
    axes = learned_axes(lm, shipped_starter(lm.identity, pairs[0][0].arrangement))
    return CurveDescent(lm, paths, config, axes).run(progress, should_stop)


def _check_pair(lm: FrozenLM, first: ProtoTokens, last: ProtoTokens) -> None:
    check_model(lm, first)
    segment(first, last)  # refuses what no path can join
    one, other = first.provenance.target_hash, last.provenance.target_hash
    if one != other or first.length != last.length:
        raise InputError(
            f"a curve connects two solutions of one text; these hold two (hashes {one[:12]} and {other[:12]})"
        )


def _texts(lm: FrozenLM, pairs: Sequence[tuple[ProtoTokens, ProtoTokens]]) -> list[Tensor]:
    """The text of each pair, read from the first of its ends, and then of its last ends, that decode to it."""
    found: dict[str, Tensor] = {}
    for ends in zip(*pairs, strict=True):
        unread = {end.provenance.target_hash: end for end in ends if end.provenance.target_hash not in found}
        for key, end in unread.items():
            decoded = decode(lm, end)
            if decoded.exact:
                found[key] = decoded.ids
    for first, _ in pairs:
        if first.provenance.target_hash not in found:
            raise InputError(
                "neither of two solutions decodes to their text, so that it is not known: "
                "fit one of them until it is exact, or give target_ids"
            )
    return [found[first.provenance.target_hash] for first, _ in pairs]


def _checked(tokens: ProtoTokens, target_ids: Tensor) -> Tensor:
    if hash_ids(target_ids) != tokens.provenance.target_hash:
        raise InputError("target_ids is not the text that the proto-tokens were fitted to")
    return target_ids
