"""What the papers report, as data: to be set beside one's own numbers, and never computed with.

Sources and texts have this project's names: `random` words, `recent` prose (the paper's fan fiction), `old` prose (its
PG-19 books), prose `generated` by the model (its continuations of PG-19 contexts). H_LM is in nats, capacity in
tokens, time in seconds, accuracy a share of tokens.

References: Exploring the Latent Capacity of LLMs for One-Step Text Generation (Mezentsev & Oseledets, 2025),
https://arxiv.org/abs/2505.21189: MODELS, LENGTHS, TABLE_1 to TABLE_4, SPEED_UP, FIGURE_7 and
CURVE_ACCURACY, CURVE_LENGTH. Cramming 1568 Tokens into a Single Vector and Back Again (Kuratov et al., 2025),
https://arxiv.org/abs/2502.13063: CRAMMED_TOKENS. What proto-tokens encode (Bondarenko et al., 2026),
https://arxiv.org/abs/2602.18301, of which we know the abstract: ROLES, TEACHING.
"""

from __future__ import annotations

ONE_STEP_PAPER = "Mezentsev & Oseledets (2025), arXiv 2505.21189"
CRAMMING_PAPER = "Kuratov et al. (2025), arXiv 2502.13063"
ENCODED_PAPER = "Bondarenko et al. (2026), arXiv 2602.18301"

MODELS = {
    "Pythia 160M": "EleutherAI/pythia-160m",
    "Pythia 410M": "EleutherAI/pythia-410m",
    "Pythia 1.4B": "EleutherAI/pythia-1.4b",
    "Llama 3.2 1B": "meta-llama/Llama-3.2-1B",
    "Llama 3.2 3B": "meta-llama/Llama-3.2-3B",
    "Llama 3.1 8B": "meta-llama/Llama-3.1-8B",
}
"""The paper's models and their names on the Hub, in the order of its columns."""

LENGTHS = (4, 5, 8, 11, 16, 22, 32, 45, 64, 90, 128, 181, 256, 362, 512, 724, 1024, 1448)
"""The grid of text lengths of Table 3, in tokens."""

TABLE_1_MODEL = "Llama 3.2 1B"
TABLE_1_TEXTS = 50

TABLE_1 = {
    "e*n": {1: (1.00, 0.00), 2: (0.45, 0.31), 4: (0.17, 0.18), 256: (0.01, 0.01)},
    "e*n/2,m*n/2": {1: (1.00, 0.00), 2: (1.00, 0.00), 4: (0.12, 0.13), 256: (0.01, 0.01)},
    "(e,m)*n/2": {1: (1.00, 0.00), 2: (1.00, 0.00), 4: (1.00, 0.00), 256: (0.17, 0.34)},
    "e,m*n": {1: (1.00, 0.00), 2: (1.00, 0.00), 4: (1.00, 0.00), 256: (0.97, 0.15)},
    "e,m*(n-1)": {1: (1.00, 0.00), 2: (1.00, 0.00), 4: (1.00, 0.00), 256: (0.99, 0.10)},
}
"""Arrangement -> text length N -> token accuracy (mean, sd) over the same 50 PG-19 texts."""

TABLE_2_LENGTH = 256
TABLE_2_TEXTS = 256
TABLE_2_SEEDS = 10

TABLE_2 = {
    "e": {1: (1.00, 0.98), 16: (0.99, 0.90), 256: (0.99, 0.86)},
    "m": {1: (1.00, 0.98), 16: (1.00, 0.86), 256: (1.00, 0.83)},
}
"""Shared vector -> texts in a group -> mean token accuracy (best seed, average over seeds)."""

TABLE_3_TOKENS = {
    ("random", False): (90, 92, 90, 256, 362, 512),
    ("random", True): (45, 22, 45, 181, 256, 256),
    ("recent", False): (128, 128, 131, 362, 512, 724),
    ("recent", True): (45, 45, 45, 181, 288, 362),
    ("old", False): (128, 167, 128, 362, 512, 724),
    ("old", True): (45, 32, 64, 181, 256, 362),
    ("generated", False): (128, 181, 128, 362, 512, 724),
    ("generated", True): (45, 32, 64, 181, 362, 362),
}
"""(source, m shared) -> capacity C in tokens for each of MODELS: best over texts and seeds at accuracy >= 0.99."""

TABLE_3_NATS = {
    ("random", False): (
        (507.5, 105.9),
        (377.1, 133.1),
        (470.7, 103.1),
        (1551.3, 159.5),
        (2193.4, 190.2),
        (2974.4, 298.3),
    ),
    ("random", True): ((247.9, 32.0), (91.1, 30.8), (231.0, 37.9), (947.7, 155.0), (1292.2, 217.4), (1309.4, 234.6)),
    ("recent", False): ((358.9, 73.3), (395.4, 97.8), (261.0, 56.4), (1107.6, 129.1), (1408.4, 179.5), (1763.3, 280.2)),
    ("recent", True): ((145.0, 26.2), (82.3, 28.1), (147.9, 29.7), (576.4, 90.4), (835.9, 121.7), (1112.8, 168.6)),
    ("old", False): ((388.4, 66.4), (408.8, 96.3), (298.4, 77.4), (993.8, 183.4), (1346.0, 218.4), (1659.8, 344.5)),
    ("old", True): ((156.0, 33.9), (88.1, 30.3), (156.0, 30.2), (456.5, 56.5), (826.1, 117.6), (832.3, 171.0)),
    ("generated", False): (
        (354.1, 72.0),
        (379.2, 82.6),
        (277.6, 71.3),
        (927.3, 103.4),
        (1266.6, 125.9),
        (1653.1, 211.4),
    ),
    ("generated", True): ((153.0, 17.8), (106.9, 38.5), (197.1, 39.3), (478.7, 85.7), (788.6, 130.8), (771.7, 143.0)),
}
"""(source, m shared) -> H_LM of what was reconstructed, in nats (mean, sd), for each of MODELS."""

TABLE_4_LENGTHS = (32, 64, 128, 256, 512)

TABLE_4 = {
    "Pythia 160M": (6, 25, 68),
    "Pythia 410M": (10, 21, 106),
    "Pythia 1.4B": (10, 66, 129),
    "Llama 3.2 1B": (11, 15, 27, 87),
    "Llama 3.2 3B": (14, 18, 28, 78, 261),
    "Llama 3.1 8B": (16, 20, 29, 60, 215),
}
"""Model -> seconds of a fit on one A100 or H100 at TABLE_4_LENGTHS; the longest texts were not fitted by all."""

SPEED_UP = 279
"""Figure 4: tokens a second of one-step decoding over those of autoregressive decoding, on average; without fitting."""

H_LM_SHARE = {"natural": "about a half, down to a fifth", "random": "about the same"}
"""Figure 3, in words: H_LM of one-step over that of autoregressive reconstruction, with equally many vectors."""

CRAMMED_TOKENS = {
    ("old", 1): {
        "Pythia 160M": 80,
        "Pythia 410M": 96,
        "Pythia 1.4B": 160,
        "Llama 3.2 1B": 512,
        "Llama 3.2 3B": 1024,
        "Llama 3.1 8B": 1568,
    },
    ("random", 1): {
        "Pythia 160M": 65,
        "Pythia 410M": 72,
        "Pythia 1.4B": 139,
        "Llama 3.2 1B": 316,
        "Llama 3.2 3B": 460,
        "Llama 3.1 8B": 792,
    },
    ("old", 2): {"Pythia 160M": 192, "Llama 3.2 1B": 1024},
}
"""(source, vectors) -> model -> tokens that autoregressive cramming holds at a mean accuracy of 0.99."""

FIGURE_7_TEXTS = 5
FIGURE_7_SOLUTIONS = 10

FIGURE_7 = {"segment": "fails in the middle", "bezier": "stays right all along"}
"""Ways between two solutions of one text -> token accuracy along them, in words; all pairs of a text's solutions."""

CURVE_ACCURACY = 1.0
"""Figure 7: token accuracy along the fitted quadratic Bezier curve, about."""

CURVE_LENGTH = 1.2
"""Figure 7: length of that curve over the segment's, at most."""

ROLES = "m carries more of a text's meaning than e"
"""What the two vectors do, in words."""

TEACHING = {"anchor": "costs reconstruction", "relational": "does not"}
"""Loss beside reconstruction that makes e follow a teacher's sentence embeddings -> what it costs, in words."""
