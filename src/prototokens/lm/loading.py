"""load_lm: a model and its tokenizer from files, frozen."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import InputError
from .frozen import FrozenLM
from .gguf_files import check_complete
from .identity import Identity, hash_vocabulary
from .sources import Source, find_source

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_lm(
    name: str = "smollm2-135m",
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> FrozenLM:
    """Load a causal LM and its tokenizer, frozen.

    Args:
        name: `smollm2-135m` (built in), a Hub id, a folder, or a `.gguf` file.
        revision: branch, tag or commit on the Hub.
        dtype: `"auto"` (that of the checkpoint), `"float32"`, `"bfloat16"`, `"float16"`, or a torch dtype.
        device: one device for all, e.g. `"cuda"`; the CPU by default.
        device_map: how accelerate spreads the model over devices, e.g. `"auto"`; instead of `device`.
        trust_remote_code: run the model repository's own Python code. Only for repositories that you trust.

    Raises:
        UnknownModelError: there is no model of that name here, and none can be fetched.
        InputError: the model cannot be loaded, or is no causal LM; the message says why.
    """
    if device is not None and device_map is not None:
        raise InputError("give device or device_map, not both")
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r}; choose one of: {' '.join(DTYPES)}")
    source = find_source(name, revision, trust_remote_code=trust_remote_code)
    model, tokenizer = _load(name, source, dtype, device_map, trust_remote_code)
    if device is not None:
        try:
            model = model.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device {str(device)!r} cannot be used here: {_line(error)[:200]}") from None
    identity = Identity(source.name, source.revision, source.fingerprint, hash_vocabulary(tokenizer))
    return FrozenLM(model, tokenizer, identity)


def _load(
    name: str, source: Source, dtype: str | torch.dtype, device_map: Any, trust_remote_code: bool
) -> tuple[Any, Any]:
    """The model and the tokenizer in a source's folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=trust_remote_code)
        model_and_report: Any = AutoModelForCausalLM.from_pretrained(
            source.folder,
            dtype=dtype,
            device_map=device_map,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
        )
    except MemoryError:
        raise InputError(f"{name}: too large for the memory of this machine; try dtype bfloat16") from None
    except Exception as error:  # configs and tokenizers are refused by errors of every type, down to a bare Exception
        reason = _line(error) or type(error).__name__
        if "trust_remote_code" in reason:
            reason = "it needs its repository's own code; allow that with --trust-remote-code if you trust it"
        raise InputError(f"{name}: cannot be loaded as a causal LM: {reason[:300]}") from None
    if not tokenizer.get_vocab():
        raise InputError(f"{name}: holds no tokenizer; save it there too: tokenizer.save_pretrained(folder)")
    model, report = model_and_report
    check_complete(name, report)
    return model, tokenizer


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def quiet_libraries() -> None:
    """Keep transformers' progress bars and advice off stderr, for programs that speak for themselves."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
