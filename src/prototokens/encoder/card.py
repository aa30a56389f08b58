"""The model card of an encoder: what it is, its language model, its training, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_TEXT = """---
{header}
---

# An encoder for {model}

It turns a text into *proto-tokens* in one pass: an e-token for every block of {block_length} tokens, and an m-token.
From these the frozen language model `{model}` reconstructs the text in one forward pass, without a generation loop. It
serves this model alone (weights `{fingerprint}`) and refuses others. The method: [Exploring the Latent Capacity of LLMs
for One-Step Text Generation](https://arxiv.org/abs/2505.21189). The library: `prototokens`.

```python
from prototokens import Encoder, decode, load_lm

lm = load_lm("{model}")
encoder = Encoder.from_pretrained("PATH OR HUB ID")
tokens = encoder(lm, "A short text.")
print(tokens.provenance.token_accuracy, decode(lm, tokens).text)
```

`token_accuracy` is the share of tokens that this text gets right. Fit steps correct the rest:
`prototokens encode TEXT --encoder PATH --refine 20`.

## Built and trained as

```json
{record}
```
"""


def model_card(record: Mapping[str, Any]) -> str:
    """The text of README.md, with its YAML header, from an encoder's record."""
    from huggingface_hub import ModelCardData

    model, config = record["model"], record["config"]
    base = {"base_model": model["name"]} if model["revision"] else {}  # a local model's name is no repository
    data = ModelCardData(library_name="prototokens", tags=["proto-tokens", "one-step-generation"], **base)
    shown = {"config": config, "training": record["training"]}
    return _TEXT.format(
        header=data.to_yaml(),
        model=model["name"],
        block_length=config["block_length"],
        fingerprint=model["fingerprint"][:12],
        record=json.dumps(shown, indent=1),
    )
