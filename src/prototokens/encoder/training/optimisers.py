"""The optimisers of an encoder's weights."""

from __future__ import annotations

import torch

from ..network import EncoderNetwork
from ..recipes import Schedule
from ..trunks import EMBEDDINGS


def optimisers_of(network: EncoderNetwork, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """AdamW over the weights; with Muon, it takes the matrices of the trunk and AdamW the rest.

    Weight matrices decay, and biases, scales, norms and the start do not.
    """
    optimisers: list[torch.optim.Optimizer] = []
    matrices = [p for name, p in network.trunk.named_parameters() if p.ndim == 2 and name not in EMBEDDINGS]
    if schedule.optimiser == "muon":
        optimisers.append(
            torch.optim.Muon(
                matrices,
                lr=schedule.lr,
                weight_decay=schedule.weight_decay,
                momentum=schedule.momentum,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    by_muon = {id(p) for p in matrices} if optimisers else set()
    rest = [p for p in network.parameters() if id(p) not in by_muon]
    decayed = [p for p in rest if p.ndim > 1 and p is not network.log_scale]
    not_decayed = [p for p in rest if p.ndim <= 1 or p is network.log_scale]
    groups = [
        {"params": decayed, "weight_decay": schedule.weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    return [*optimisers, torch.optim.AdamW(groups, lr=schedule.lr, betas=schedule.betas)]
