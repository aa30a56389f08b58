"""Laws of the metrics: bounds, identity, a batch is a loop, agreement with the libraries that define them."""

import math
import sys

import pytest
import sacrebleu
import torch
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from transformers import LlamaConfig, LlamaForCausalLM

from prototokens import metrics
from prototokens.errors import InputError

ID_METRICS = [metrics.c_tokens, metrics.token_accuracy, metrics.exact_match, metrics.correct_prefix]
LOGIT_METRICS = [metrics.h_lm_nats, metrics.logit_margins]
ROUGES = ["rouge1", "rouge2", "rougeL"]
VOCAB = 5


@st.composite
def id_batches(draw):
    """Two batches (B, T) of ids, over few enough ids that many agree."""
    texts, length = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    row = st.lists(st.integers(0, 2), min_size=length, max_size=length)
    batch = st.lists(row, min_size=texts, max_size=texts)
    return torch.tensor(draw(batch)), torch.tensor(draw(batch))


@st.composite
def logit_batches(draw):
    """Logits (B, T, V) on a coarse grid, so that ties happen, and targets (B, T)."""
    texts, length = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    logits = torch.randint(-4, 5, (texts, length, VOCAB), generator=generator) / 2
    return logits, torch.randint(VOCAB, (texts, length), generator=generator)


# Ids


@given(id_batches())
def test_id_metrics_are_bounded_and_agree_with_each_other(batch):
    ids, target_ids = batch
    length = target_ids.shape[-1]
    count, prefix = metrics.c_tokens(ids, target_ids), metrics.correct_prefix(ids, target_ids)
    exact = metrics.exact_match(ids, target_ids)
    assert ((prefix >= 0) & (prefix <= count) & (count <= length)).all()
    assert torch.equal(metrics.token_accuracy(ids, target_ids), count / length)
    assert torch.equal(exact, count == length)
    assert torch.equal(exact, prefix == length)


@given(id_batches())
def test_id_metrics_count_as_python_does(batch):
    for ids, target_ids in zip(*batch, strict=True):
        hits = [a == b for a, b in zip(ids.tolist(), target_ids.tolist(), strict=True)]
        wrong = hits.index(False) if False in hits else None
        assert metrics.c_tokens(ids, target_ids).item() == sum(hits)
        assert metrics.first_wrong(ids, target_ids) == wrong
        assert metrics.correct_prefix(ids, target_ids).item() == (len(hits) if wrong is None else wrong)


@given(id_batches())
def test_a_text_against_itself_is_exact(batch):
    ids, _ = batch
    assert metrics.exact_match(ids, ids).all()
    assert (metrics.token_accuracy(ids, ids) == 1).all()
    assert metrics.first_wrong(ids[0], ids[0]) is None


@pytest.mark.parametrize("metric", ID_METRICS)
@given(batch=id_batches())
def test_a_batch_of_ids_is_a_loop_over_its_texts(metric, batch):
    ids, target_ids = batch
    looped = [metric(*text) for text in zip(ids, target_ids, strict=True)]
    assert torch.equal(metric(ids, target_ids), torch.stack(looped))


# Logits


@pytest.mark.parametrize("metric", LOGIT_METRICS)
@given(batch=logit_batches())
def test_a_batch_of_logits_is_a_loop_over_its_texts(metric, batch):
    logits, target_ids = batch
    looped = [metric(*text) for text in zip(logits, target_ids, strict=True)]
    torch.testing.assert_close(metric(logits, target_ids), torch.stack(looped))


@given(logit_batches())
def test_margins_follow_their_formula(batch):
    logits, target_ids = batch
    rivals = logits.scatter(-1, target_ids.unsqueeze(-1), -math.inf)
    target = logits.gather(-1, target_ids.unsqueeze(-1)).squeeze(-1)
    assert torch.equal(metrics.logit_margins(logits, target_ids), target - rivals.amax(-1))


@given(logit_batches())
def test_the_sign_of_a_margin_tells_whether_the_argmax_is_the_target(batch):
    logits, target_ids = batch
    margins, right = metrics.logit_margins(logits, target_ids), logits.argmax(-1) == target_ids
    assert right[margins > 0].all()
    assert not right[margins < 0].any()


@given(logit_batches())
def test_h_lm_is_never_negative_and_ignores_the_last_position(batch):
    logits, target_ids = batch
    nats = metrics.h_lm_nats(logits, target_ids)
    assert nats.shape == target_ids.shape[:-1]
    assert (nats >= 0).all()
    logits[..., -1, :] = math.nan
    assert torch.equal(metrics.h_lm_nats(logits, target_ids), nats)


@pytest.mark.parametrize("length", [1, 2, 7])
def test_h_lm_of_a_uniform_model_is_log_v_for_each_token_but_the_first(length):
    logits, target_ids = torch.zeros(length, 8), torch.arange(length)
    assert metrics.h_lm_nats(logits, target_ids).item() == pytest.approx((length - 1) * math.log(8))


@pytest.mark.parametrize("texts", [1, 3])
def test_h_lm_is_t_minus_1_times_the_librarys_loss(texts):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    assert sum(p.numel() for p in model.parameters()) < 20_000
    target_ids = torch.randint(64, (texts, 9))
    with torch.no_grad():
        outputs = model(input_ids=target_ids, labels=target_ids)
    ours = metrics.h_lm_nats(outputs.logits, target_ids)
    torch.testing.assert_close(ours.sum(), outputs.loss * texts * 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logit_metrics_return_float32_whatever_the_dtype(dtype):
    logits, target_ids = torch.randn(4, VOCAB).to(dtype), torch.arange(4)
    for metric in LOGIT_METRICS:
        expected = metric(logits.float(), target_ids)
        torch.testing.assert_close(metric(logits, target_ids), expected)


# Strings

LETTERS = st.text(alphabet="ab c.é字\n", max_size=30)
PAIRS = [
    ("the cat sat on the mat", "the cat sat on a mat"),
    ("It was a dark and stormy night.", "It was a bright cold day in April."),
    ("one", "one two three four five"),
    ("  odd   spacing\n", "odd spacing"),
]


@given(LETTERS, LETTERS)
def test_text_scores_are_bounded(decoded, original):
    quality = metrics.text_quality(decoded, original)
    assert 0 <= quality.bleu <= 100
    assert 0 <= quality.chrf <= 100
    assert all(0 <= getattr(quality, name) <= 1 for name in ROUGES)


@pytest.mark.parametrize("text", ["two words", "It was a bright cold day in April, and the clocks struck."])
def test_a_text_is_perfectly_like_itself(text):
    quality = metrics.text_quality(text, text)
    assert quality == metrics.TextQuality(bleu=100.0, rouge1=1.0, rouge2=1.0, rougeL=1.0, chrf=100.0)


@pytest.mark.parametrize(("decoded", "original"), [("", ""), ("", "a word"), ("a word", "")])
def test_an_empty_text_scores_0(decoded, original):
    assert metrics.text_quality(decoded, original) == metrics.TextQuality(0, 0, 0, 0, 0)


@pytest.mark.parametrize(("decoded", "original"), PAIRS)
def test_bleu_and_chrf_are_sacrebleus(decoded, original):
    bleu = sacrebleu.sentence_bleu(decoded, [original]).score
    assert metrics.bleu(decoded, original) == pytest.approx(bleu, rel=1e-12)
    assert metrics.chrf(decoded, original) == sacrebleu.sentence_chrf(decoded, [original]).score


@pytest.mark.parametrize(("decoded", "original"), PAIRS)
def test_rouge_is_rouge_scores(decoded, original):
    scores = RougeScorer(ROUGES).score(target=original, prediction=decoded)
    assert metrics.rouge(decoded, original) == {name: scores[name].fmeasure for name in ROUGES}


# Errors


@pytest.mark.parametrize("metric", [*ID_METRICS, metrics.first_wrong])
def test_ids_of_another_shape_are_refused(metric):
    with pytest.raises(InputError, match=r"ids \(3,\) and target_ids \(4,\) must have the same shape"):
        metric(torch.zeros(3), torch.zeros(4))
    with pytest.raises(InputError, match=r"target_ids \(0,\) hold no token"):
        metric(torch.zeros(0), torch.zeros(0))


@pytest.mark.parametrize("metric", LOGIT_METRICS)
def test_logits_of_another_shape_are_refused(metric):
    with pytest.raises(InputError, match=r"logits \(1, 4, 5\) do not fit target_ids \(4,\)"):
        metric(torch.zeros(1, 4, 5), torch.arange(4))


def test_first_wrong_refuses_a_batch():
    with pytest.raises(InputError, match=r"one text, ids of shape \(T,\), not \(2, 3\)"):
        metrics.first_wrong(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("metric", "module"),
    [(metrics.bleu, "sacrebleu"), (metrics.chrf, "sacrebleu"), (metrics.rouge, "rouge_score")],
)
def test_a_missing_library_is_named_with_its_remedy(metric, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "rouge_score.rouge_scorer", raising=False)
    with pytest.raises(InputError, match=rf"needs {module}; install .*pip install 'prototokens\[metrics\]'"):
        metric("a", "a")
