"""Laws of drafting at places of texts: each is drafted behind as if it stood alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from drafters import VERIFIERS, by_hand, random_drafter
from families import family
from prototokens import FrozenLM
from prototokens.drafting.network import DrafterConfig
from prototokens.drafting.train_drafter import Drafts, Places, Written, draft_at


def draw(length: int, count: int, seed: int) -> Tensor:
    return torch.randint(97, 123, (count, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=VERIFIERS)
def verifier(request: pytest.FixtureRequest) -> FrozenLM:
    """Each family that can verify drafts, in turn."""
    return family(request.param)


@pytest.mark.parametrize(
    "config",
    [DrafterConfig(1, 1, 8, 0), DrafterConfig(3, 3, 8, 0), DrafterConfig(2, 4, 8, 8), DrafterConfig(0, 2, 0, 8)],
    ids=str,
)
def test_places_of_texts_are_drafted_at_as_if_each_stood_alone(verifier: FrozenLM, config: DrafterConfig) -> None:
    network, n_drafts = random_drafter(verifier, config).network, config.n_drafts
    length, prompt = 30, 4
    ids = draw(length, 2, 0)
    ends = torch.tensor([length, 20])  # the second text ends early
    places = torch.tensor([[3, 9, 9, length - 2 - n_drafts], [5, 16, 18, 25]])
    lags = torch.tensor([[0, 1, n_drafts, 2], [9, 0, 1, 0]])
    n_masks = torch.tensor([[9, 1, 2, 0], [1, 9, 2, 9]]).clamp_max(config.n_masks)
    drafts = draft_at(verifier, network, Written(ids, prompt, ends), Places(places, lags, n_masks))
    losses, right, known = [], [], []
    for text, (row, end) in enumerate(zip(ids, ends.tolist(), strict=True)):
        for place, lag, n in zip(*(x[text].tolist() for x in (places, lags, n_masks)), strict=True):
            logits = by_hand(verifier, network, row, place, lag, n)
            for i in range(1, n_drafts + 1):
                known.append(place + 1 + i < end and (i <= n or config.reader_width > 0))
                right.append(known[-1] and int(logits[i - 1].argmax()) == int(row[place + 1 + i]))
                if known[-1]:
                    losses.append(-logits[i - 1].log_softmax(-1)[row[place + 1 + i]])
    shape = (2, 4, n_drafts)
    assert drafts.is_known.tolist() == torch.tensor(known).view(shape).tolist()
    assert drafts.is_right.tolist() == torch.tensor(right).view(shape).tolist()
    expected = torch.stack(losses).mean()
    assert drafts.loss_nats.item() == pytest.approx(expected.item(), rel=1e-4)
    weights = [weight for weight in network.parameters() if len(weight)]
    gradients, expected_gradients = (torch.autograd.grad(loss, weights) for loss in (drafts.loss_nats, expected))
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-4 * expected_gradient.abs().max().item())


def test_what_a_text_writes_next_is_seen_as_right(llama: FrozenLM) -> None:
    """A network that gives the text's own embeddings drafts exactly what the model would write."""
    prompts = draw(4, 3, 1)
    ids = torch.cat([prompts, llama.generate(llama.embed(prompts), 12)], 1)
    places = torch.tensor([[4, 8], [5, 9], [6, 10]])

    class Knowing(torch.nn.Module):
        n_masks = n_drafts = 2
        has_reader = False

        def inputs(self, state: Tensor, token: Tensor, lag: Tensor) -> Tensor:
            rows = torch.arange(3).repeat_interleave(2)
            assert torch.equal(token, llama.embed(ids[rows, places.flatten()]))
            return torch.stack([llama.embed(ids[rows, places.flatten() + i]) for i in (1, 2)], 1)

        def read(self, at_mask: Tensor, *_: Tensor) -> Tensor:
            return at_mask

    network: Any = Knowing()
    chosen = Places(places, torch.zeros_like(places), torch.full_like(places, 2))
    drafts = draft_at(llama, network, Written(ids, 4, torch.full((3,), 16)), chosen)
    assert drafts.is_right.all()
    assert drafts.shares() == drafts.accepted() == (1.0, 1.0)
    assert not drafts.loss_nats.requires_grad


def test_a_text_that_has_ended_teaches_nothing(llama: FrozenLM) -> None:
    network = random_drafter(llama, DrafterConfig(2, 2, 8, 8)).network
    chosen = Places(*(torch.tensor([values]) for values in ([5, 7], [0, 1], [2, 1])))
    drafts = draft_at(llama, network, Written(draw(12, 1, 0), 4, torch.tensor([5])), chosen)
    assert drafts.loss_nats.item() == 0
    assert not drafts.is_known.any()
    assert drafts.shares() == drafts.accepted() == (0.0, 0.0)
    assert all(not gradient.any() for gradient in torch.autograd.grad(drafts.loss_nats, list(network.parameters())))


def test_shares_are_counted_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(5, 6, 3, generator=generator).cumsum(-1) < 1.2  # what is known of a place is a beginning
    right = (torch.rand(5, 6, 3, generator=generator) < 0.6) & known
    drafts = Drafts(torch.tensor(0.0), right, known)
    n_right, n_known, n_followed, n_whole = [0] * 3, [0] * 3, [0] * 3, 0
    for is_right, is_known in zip(right.flatten(0, 1).tolist(), known.flatten(0, 1).tolist(), strict=True):
        n_whole += all(is_known)
        for i in range(3):
            n_right[i] += is_right[i]
            n_known[i] += is_known[i]
            n_followed[i] += all(is_known) and all(is_right[: i + 1])
    assert 0 < n_whole < 30
    assert drafts.shares() == pytest.approx([a / b for a, b in zip(n_right, n_known, strict=True)])
    assert drafts.accepted() == pytest.approx([n / n_whole for n in n_followed])
