"""connect: fit a curve of low loss between two solutions of one text."""

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
from .curve_descent import CurveDescent
from .curves import ConnectConfig, Connection
from .paths import Path, segment, straight


def connect(
    lm: FrozenLM,
    first: ProtoTokens,
    last: ProtoTokens,
    config: ConnectConfig | None = None,
    target_ids: Tensor | None = None,
) -> Path:
    """Fit a curve of low loss between two solutions of one text; `connect_pairs` does so for many pairs in one batch.

    Args:
        lm: the frozen model.
        first: the solution at tau = 0.
        last: the solution at tau = 1, of the same text and arrangement.
        config: settings of the fit; the default if None.
        target_ids: the text, int64, (T,). If None, it is decoded from a solution that is exact.

    Returns:
        The curve of the best evaluation. It may lose tokens somewhere: `profile` scores it.

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
    """Fit curves of low loss between pairs of solutions, all in one batch.

    minimise over the inner control points of phi:  E over tau ~ F of the mean over i of -log P(t_i | phi(tau))

    The ends are held. A curve begins as the straight segment, with evenly spaced control points. Every `check_every`
    steps an evaluation scores points along the whole curve. The curve of the best evaluation is kept: the one with the
    highest lowest accuracy, and among equal ones the one with the lowest highest loss. A curve that meets the stopping
    rule is done and leaves the batch. F is uniform for the share 1 - focus. The rest follows the loss in the last
    evaluation. The sampled taus depend on the seed and the curve's own losses, not on the batch.

    Args:
        lm: the frozen model.
        pairs: solutions. The two of a pair are of one text, and all texts have one length and arrangement.
        config: settings of the fit; the default if None.
        target_ids: the text of each pair, int64, (B, T). If None, each is decoded from a solution that is exact.
        progress: called at every evaluation. Its loss is the mean over curves of their highest loss, its accuracy that
            of their lowest accuracy.
        should_stop: called at every evaluation. If it returns True, the best so far is returned as `"interrupted"`.

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
    for first, last in pairs:
        _check_pair(lm, first, last)
    targets = _texts(lm, pairs) if target_ids is None else list(target_ids)
    paths = [
        replace(straight(segment(first, last), config.kind, config.inner + 2), target_ids=_checked(first, ids))
        for (first, last), ids in zip(pairs, targets, strict=True)
    ]
    if any(path.layout != paths[0].layout for path in paths):
        raise InputError("pairs of one batch need texts of one length and one arrangement: use a batch for each")
    check_texts(lm, torch.stack(targets), paths[0].layout)
    axes = learned_axes(lm, shipped_starter(lm.identity, pairs[0][0].arrangement))
    return CurveDescent(lm, paths, config, axes).run(progress, should_stop)


def _check_pair(lm: FrozenLM, first: ProtoTokens, last: ProtoTokens) -> None:
    check_model(lm, first)
    segment(first, last)  # refuses what no path can join
    hashes = first.provenance.target_hash, last.provenance.target_hash
    if hashes[0] != hashes[1] or first.length != last.length:
        raise InputError(
            f"a curve connects two solutions of one text; these are of two (hashes {hashes[0][:12]} and "
            f"{hashes[1][:12]})"
        )


def _texts(lm: FrozenLM, pairs: Sequence[tuple[ProtoTokens, ProtoTokens]]) -> list[Tensor]:
    """The text of each pair, decoded from its first solution, or from its last where the first is not exact."""
    texts: dict[str, Tensor] = {}  # by hash
    for ends in zip(*pairs, strict=True):
        unknown = {end.provenance.target_hash: end for end in ends if end.provenance.target_hash not in texts}
        for target_hash, end in unknown.items():
            decoded = decode(lm, end, scores=False)
            if decoded.exact:
                texts[target_hash] = decoded.ids
    for first, _ in pairs:
        if first.provenance.target_hash not in texts:
            raise InputError(
                "neither of two solutions decodes to their text, so the text is unknown: "
                "fit one of them until it is exact, or give target_ids"
            )
    return [texts[first.provenance.target_hash] for first, _ in pairs]


def _checked(tokens: ProtoTokens, target_ids: Tensor) -> Tensor:
    if hash_ids(target_ids) != tokens.provenance.target_hash:
        raise InputError("target_ids is not the text that the proto-tokens were fitted to")
    return target_ids
