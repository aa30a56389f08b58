"""How well a decoded text matches its target, and how much information the target holds: pure functions.

A batch is a leading axis: what is () for a text (T,) is (B,) for a batch (B, T), text by text.
Functions of strings take the decoded text first, then the original.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .errors import InputError


def c_tokens(ids: Tensor, target_ids: Tensor) -> Tensor:
    """Count the correct tokens.

    C_tokens = sum over i of [ids_i = t_i], where ids_i is the argmax of the output that is read as token i.

    Args:
        ids: decoded token ids, (T,) or (B, T), int64.
        target_ids: ids of the text, of the same shape.

    Returns:
        Number of tokens, 0 to T, () or (B,), int64.

    Raises:
        InputError: the shapes differ or T is 0.

    Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets,
    2025), eq. 2, https://arxiv.org/abs/2505.21189.
    """
    return _hits(ids, target_ids).sum(-1)


def token_accuracy(ids: Tensor, target_ids: Tensor) -> Tensor:
    """Share of correct tokens, C_tokens / T.

    Args:
        ids: decoded token ids, (T,) or (B, T), int64.
        target_ids: ids of the text, of the same shape.

    Returns:
        A share, 0 to 1, () or (B,), float32.

    Raises:
        InputError: the shapes differ or T is 0.
    """
    return _hits(ids, target_ids).float().mean(-1)


def exact_match(ids: Tensor, target_ids: Tensor) -> Tensor:
    """Whether every token is correct.

    Args:
        ids: decoded token ids, (T,) or (B, T), int64.
        target_ids: ids of the text, of the same shape.

    Returns:
        () or (B,), bool.

    Raises:
        InputError: the shapes differ or T is 0.
    """
    return _hits(ids, target_ids).all(-1)


def correct_prefix(ids: Tensor, target_ids: Tensor) -> Tensor:
    """Count the correct tokens before the first wrong one; T if none is wrong.

    Args:
        ids: decoded token ids, (T,) or (B, T), int64.
        target_ids: ids of the text, of the same shape.

    Returns:
        Number of tokens, 0 to T, () or (B,), int64. Below T it is also the index, from 0, of the first wrong
        token.

    Raises:
        InputError: the shapes differ or T is 0.
    """
    return _hits(ids, target_ids).long().cumprod(-1).sum(-1)


def first_wrong(ids: Tensor, target_ids: Tensor) -> int | None:
    """Index of the first wrong token of one text; for a batch, see `correct_prefix`.

    Args:
        ids: decoded token ids, (T,), int64.
        target_ids: ids of the text, (T,), int64.

    Returns:
        0 to T - 1, or None if every token is correct.

    Raises:
        InputError: the shapes differ, T is 0, or a batch is given.
    """
    if ids.ndim != 1:
        raise InputError(f"first_wrong takes one text, ids of shape (T,), not {tuple(ids.shape)}")
    prefix = int(correct_prefix(ids, target_ids))
    return prefix if prefix < len(target_ids) else None


def h_lm_nats(logits: Tensor, target_ids: Tensor) -> Tensor:
    """Information that a text holds for an ordinary autoregressive language model, in nats.

    H_LM = -sum over i = 2 ... T of log P(t_i | t_1 ... t_(i-1))

    t_1 is left out: without a BOS nothing stands before it, so the model gives it no probability. The value
    is T - 1 times the mean loss that a Hugging Face model returns for `labels=target_ids`.

    Args:
        logits: what the model returns for `input_ids=target_ids`, without proto-tokens, (T, V) or (B, T, V),
            any floating dtype; the last position, which predicts t_(T+1), is not used.
        target_ids: ids of the text, (T,) or (B, T), int64.

    Returns:
        Nats per text, 0 or more; 0 for T = 1; () or (B,), float32.

    Raises:
        InputError: the shapes do not fit or T is 0.

    Reference: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets,
    2025), eq. 3, https://arxiv.org/abs/2505.21189.
    """
    _check_logits(logits, target_ids)
    predictions = logits[..., :-1, :].flatten(0, -2)  # (B * (T - 1), V)
    nexts = target_ids[..., 1:]  # (B, T - 1)
    nats = F.cross_entropy(predictions.float(), nexts.flatten(), reduction="none")
    return nats.view(nexts.shape).sum(-1)


def logit_margins(logits: Tensor, target_ids: Tensor) -> Tensor:
    """How far each target leads over the best other token.

    margin_i = logits_i[t_i] - max over v != t_i of logits_i[v]

    A positive margin means that the argmax is the target, a negative one that it is not, 0 a tie. The logits
    are only read, never copied.

    Args:
        logits: outputs that are read as tokens 1 ... T, nothing shifted, (T, V) or (B, T, V), any floating
            dtype, V at least 2.
        target_ids: ids of the text, (T,) or (B, T), int64.

    Returns:
        Margins in logits, (T,) or (B, T), float32.

    Raises:
        InputError: the shapes do not fit or T is 0.
    """
    _check_logits(logits, target_ids)
    best, best_ids = logits.topk(2, dim=-1)  # (B, T, 2)
    target = logits.gather(-1, target_ids.unsqueeze(-1)).squeeze(-1)  # (B, T)
    rival = best[..., 0].where(best_ids[..., 0] != target_ids, best[..., 1])
    return target.float() - rival.float()


@dataclass(frozen=True)
class TextQuality:
    """Likeness of a decoded text to its original, each score on its library's scale; more is better.

    Attributes:
        bleu: sentence BLEU, 0 to 100.
        rouge1: ROUGE-1 F-measure, 0 to 1.
        rouge2: ROUGE-2 F-measure, 0 to 1.
        rougeL: ROUGE-L F-measure, 0 to 1.
        chrf: sentence chrF, 0 to 100.
    """

    bleu: float
    rouge1: float
    rouge2: float
    rougeL: float
    chrf: float


def bleu(decoded: str, original: str) -> float:
    """Sentence BLEU as sacrebleu computes it by default: 13a tokens, exponential smoothing, effective order.

    Args:
        decoded: what the model wrote.
        original: the text it should have written.

    Returns:
        0 to 100; 0 if either text is empty.

    Raises:
        InputError: sacrebleu is not installed.

    Reference: A Call for Clarity in Reporting BLEU Scores (Post, 2018), https://aclanthology.org/W18-6319.
    """
    score = _load_extra("sacrebleu").sentence_bleu(decoded, [original]).score
    return min(float(score), 100.0)  # rounding takes a perfect score to 100.00000000000004


def chrf(decoded: str, original: str) -> float:
    """Sentence chrF as sacrebleu computes it by default: characters up to 6-grams, no words, beta = 2.

    Args:
        decoded: what the model wrote.
        original: the text it should have written.

    Returns:
        0 to 100; 0 if either text is empty. White space is ignored.

    Raises:
        InputError: sacrebleu is not installed.

    Reference: chrF: character n-gram F-score for automatic MT evaluation (Popović, 2015),
    https://aclanthology.org/W15-3049.
    """
    score = _load_extra("sacrebleu").sentence_chrf(decoded, [original]).score
    return min(float(score), 100.0)


def rouge(decoded: str, original: str) -> dict[str, float]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, without stemming, as rouge-score computes them.

    rouge-score sees only a-z and 0-9, in lower case: a text in another script scores 0 even against itself.
    ROUGE-L takes time and memory in proportion to the product of the numbers of words.

    Args:
        decoded: what the model wrote.
        original: the text it should have written.

    Returns:
        `{"rouge1": ..., "rouge2": ..., "rougeL": ...}`, each 0 to 1; 0 if either text is empty. ROUGE-2 is 0
        for a text of one word.

    Raises:
        InputError: rouge-score is not installed.

    Reference: ROUGE: A Package for Automatic Evaluation of Summaries (Lin, 2004),
    https://aclanthology.org/W04-1013.
    """
    scorer = _load_extra("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"])
    return {name: float(score.fmeasure) for name, score in scorer.score(original, decoded).items()}


def text_quality(decoded: str, original: str) -> TextQuality:
    """All scores of likeness between two strings: `bleu`, `rouge`, `chrf`.

    Args:
        decoded: what the model wrote.
        original: the text it should have written.

    Returns:
        The scores, each on the scale that `TextQuality` states.

    Raises:
        InputError: sacrebleu or rouge-score is not installed.
    """
    return TextQuality(bleu=bleu(decoded, original), chrf=chrf(decoded, original), **rouge(decoded, original))


def _hits(ids: Tensor, target_ids: Tensor) -> Tensor:
    """Which tokens are correct, (..., T), bool."""
    _check_tokens(target_ids)
    if ids.shape != target_ids.shape:
        raise InputError(
            f"ids {tuple(ids.shape)} and target_ids {tuple(target_ids.shape)} must have the same shape, (T,) or (B, T)"
        )
    return ids == target_ids


def _check_logits(logits: Tensor, target_ids: Tensor) -> None:
    _check_tokens(target_ids)
    if logits.shape[:-1] != target_ids.shape:
        raise InputError(
            f"logits {tuple(logits.shape)} do not fit target_ids {tuple(target_ids.shape)}: "
            "expected (T, V) for (T,), or (B, T, V) for (B, T)"
        )


def _check_tokens(target_ids: Tensor) -> None:
    if target_ids.ndim == 0 or target_ids.shape[-1] == 0:
        raise InputError(f"target_ids {tuple(target_ids.shape)} hold no token; at least 1 is needed")


def _load_extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        raise InputError(f"this metric needs {library}; install it with: pip install 'prototokens[metrics]'") from error
