"""What of a model's configuration changes its logits: the part of a fingerprint that weights do not tell."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

_NOT_OF_LOGITS = frozenset(
    (
        # how a model is loaded, saved and run
        "architectures", "attn_implementation", "auto_map", "chunk_size_feed_forward", "dtype", "name_or_path",
        "output_attentions", "output_hidden_states", "output_router_logits", "return_dict", "tokenizer_class",
        "torch_dtype", "torchscript", "use_cache",
        # training, and tasks of other heads
        "finetuning_task", "gradient_checkpointing", "id2label", "init_std", "initializer_range", "label2id",
        "layerdrop", "num_labels", "problem_type", "router_aux_loss_coef", "task_specific_params",
        # generation
        "bos_token_id", "cache_implementation", "do_sample", "eos_token_id", "length_penalty", "max_length",
        "max_new_tokens", "min_length", "no_repeat_ngram_size", "num_beams", "num_return_sequences", "prefix",
        "repetition_penalty", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
        "temperature", "top_k", "top_p",
    )
)  # fmt: skip
_NOT_OF_LOGITS_ENDS = ("dropout", "pdrop", "version")


def text_config(model: Any) -> Any:
    """The part of a model's configuration that is of its text, or None where it has no configuration."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def config_values(config: Any) -> str | None:
    """A configuration's type and the values that change logits and are not its class's defaults, as JSON.

    Left out are paths, versions, dtypes, kernels, and what training and generation read. Defaults are left out too,
    so that a later transformers with more of them gives the same. The text part of a configuration stands for all.

    Args:
        config: a Hugging Face configuration.

    Returns:
        The JSON text, or None for what is no such configuration.
    """
    if not hasattr(config, "to_dict") or not hasattr(config, "model_type"):
        return None
    with suppress(ValueError):  # several parts read text
        config = config.get_text_config()
    values = _plain(config.to_dict())
    try:
        defaults = _plain(type(config)().to_dict())
    except Exception:  # a class of a repository's own may need arguments, and raises what it pleases
        defaults = {}
    kept = {name: value for name, value in values.items() if _tells(name, value, defaults)}
    return json.dumps([str(config.model_type), kept], sort_keys=True)


def read_config_values(folder: Path, *, trust_remote_code: bool = False) -> str:
    """The values of a folder's `config.json`; of one that transformers cannot read, its text.

    Args:
        folder: holds `config.json`.
        trust_remote_code: run the folder's own code, if its configuration asks for it.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        return config_values(config) or ""
    except Exception:  # transformers raises what its many configurations raise; loading says what is wrong
        return (folder / "config.json").read_bytes().decode("utf-8", "backslashreplace")


def _tells(name: str, value: Any, defaults: dict[str, Any]) -> bool:
    if name in defaults:
        return bool(value != defaults[name])
    return value is not None and value is not False


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The values as JSON knows them, without those that change no logits."""
    return _without(json.loads(json.dumps(values, default=str)))


def _without(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if name not in _NOT_OF_LOGITS and not name.startswith("_") and not name.endswith(_NOT_OF_LOGITS_ENDS)
    }
