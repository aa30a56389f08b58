"""The model card of an encoder: what it is, what it belongs to, how it was trained, how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_TEXT = """---
{header}
---

# An encoder for {model}

It turns a text of at most {max_tokens} tokens into *proto-tokens* in one pass: {e_tokens} e-token(s) and an m-token,
from which the frozen language model `{model}` writes the text back in one forward pass, without a generation loop. It
serves this model alone (weights `{fingerprint}`) and refuses others. The method: [Exploring the Latent Capacity of LLMs
for One-Step Text Generation](https://arxiv.org/abs/2505.21189); the library: `prototokens`.

```python
from prototokens import Encoder, decode, load_lm

lm = load_lm("{model}")
encoder = Encoder.from_pretrained("PATH OR HUB ID")
tokens = encoder(lm, "A short text.")
print(tokens.provenance.token_accuracy, decode(lm, tokens).text)
```

How many tokens come back is measured for every text (`token_accuracy`); a few fit steps from here mend the rest:
`prototokens encode TEXT --encoder PATH --refine 20`.

## Built and trained as

```json
{record}
```
"""


def model_card(record: Mapping[str, Any]) -> str:
    """A README.md with its YAML header, from the record that an encoder is saved with."""
    from huggingface_hub import ModelCardData

    model, config = record["model"], record["config"]
    base = {"base_model": model["name"]} if model["revision"] else {}  # only then is it the name of a repository
    data = ModelCardData(library_name="prototokens", tags=["proto-tokens", "one-step-generation"], **base)
    shown = {"config": config, "training": record["training"]}
    return _TEXT.format(
        header=data.to_yaml(),
        model=model["name"],
        max_tokens=config["max_tokens"],
        e_tokens=config["e_tokens"],
        fingerprint=model["fingerprint"][:12],
        record=json.dumps(shown, indent=1),
    )
