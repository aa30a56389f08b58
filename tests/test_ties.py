"""Laws of ties: a score that is reported counts what decoding gives, whichever of two equal logits that is."""

from __future__ import annotations

import pytest
import torch

from families import ONE, VOCABULARY, analytic, budget
from prototokens import decode, fit
from prototokens.arrangements import arrangement_named
from prototokens.encoder.evaluate import score_vectors
from prototokens.fitting.objective import is_argmax


@pytest.mark.parametrize("token", [3, 5])
def test_of_two_equal_logits_the_decoded_one_is_right(token: int) -> None:
    head = torch.eye(VOCABULARY)
    head[3, 5] = head[5, 3] = 1.0  # tokens 3 and 5 always have the same logit
    lm, ids = analytic(head), torch.tensor([token])
    result = fit(lm, ids, budget(ONE, max_steps=20))
    decoded = decode(lm, result.tokens, scores=True)
    assert result.min_margin == 0
    assert int(decoded.ids) in (3, 5)
    assert result.exact == decoded.exact == (int(decoded.ids) == token)
    assert result.token_accuracy == result.tokens.provenance.token_accuracy == float(decoded.exact)
    e, m = result.tokens.e[None], result.tokens.m[None]
    score = score_vectors(lm, arrangement_named(ONE.arrangement), e, m, ids[None])
    assert score.token_accuracy == score.exact_match == float(decoded.exact)


def test_a_target_is_right_where_it_is_the_argmax() -> None:
    logits = torch.tensor([[[0.0, 2.0, 1.0], [3.0, 2.0, 3.5], [1.0, 1.0, 0.0]]])
    assert is_argmax(logits, torch.tensor([[1, 0, 2]])).tolist() == [[True, False, False]]
    assert is_argmax(logits, logits.argmax(-1)).all()
    logits[0, 0, 1] = torch.nan
    assert is_argmax(logits, logits.argmax(-1)).tolist() == [[False, True, True]]
