"""Laws of GGUF files: converted once, checked at every use, and refused where weights are missing."""

from __future__ import annotations

import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from families import build, tokenizer
from prototokens import InputError, load_lm
from prototokens.lm import gguf_files

gguf = pytest.importorskip("gguf")


def write(path: Path, *, drop: Collection[str] = (), architecture: str = "llama", parts: int = 1) -> Path:
    """A GGUF file of the tiny llama."""
    model = build("llama")
    config = model.config
    tokens = [token for token, _ in sorted(tokenizer().get_vocab().items(), key=lambda item: item[1])]
    tokens += [f"[{i}]" for i in range(len(tokens), config.vocab_size - 1)] + ["ab"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    if parts > 1:
        writer.add_uint16("split.count", parts)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        name_there, values = names.get_name(name, try_suffixes=(".weight",)), tensor.numpy()
        if "q_proj" in name or "k_proj" in name:  # GGUF interleaves the halves of each head
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if name_there not in drop:
            writer.add_tensor(name_there, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROTOTOKENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were converted."""
    seen, convert = [], gguf_files._convert

    def watch(path: Path, folder: Path, digest: str) -> None:
        seen.append(path)
        convert(path, folder, digest)

    monkeypatch.setattr(gguf_files, "_convert", watch)
    return seen


def folders(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        load_lm(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_gguf_file_is_converted_once(tmp_path: Path, cache: Path, conversions: list[Path]) -> None:
    file = write(tmp_path / "model.gguf")
    first, again = load_lm(str(file)), load_lm(str(file))
    assert conversions == [file]
    assert first.identity == again.identity
    assert first.identity.fingerprint == gguf_files.hash_file(file)
    ids = torch.arange(8)
    with torch.no_grad():
        reference = build("llama").eval()(input_ids=ids[None]).logits[0]
    assert torch.equal(again.next_token_logits(ids), reference)
    assert len(folders(cache)) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "prototokens-source.json"])
def test_a_damaged_conversion_is_made_anew(tmp_path: Path, cache: Path, conversions: list[Path], name: str) -> None:
    file = write(tmp_path / "model.gguf")
    before = load_lm(str(file)).next_token_logits(torch.arange(8))  # now: weights are mapped from the file
    damaged = folders(cache)[0] / name
    data = bytearray(damaged.read_bytes())
    data[-400:] = bytes(len(data[-400:]))
    damaged.write_bytes(data)
    after = load_lm(str(file))
    assert len(conversions) == 2
    assert torch.equal(after.next_token_logits(torch.arange(8)), before)


def test_a_conversion_without_hashes_is_made_anew(tmp_path: Path, cache: Path, conversions: list[Path]) -> None:
    file = write(tmp_path / "model.gguf")
    load_lm(str(file))
    record = folders(cache)[0] / "prototokens-source.json"
    record.write_text(json.dumps({"fingerprint": gguf_files.hash_file(file)}))
    load_lm(str(file))
    assert len(conversions) == 2


def test_of_two_first_runs_one_converts(tmp_path: Path, cache: Path, conversions: list[Path]) -> None:
    file = write(tmp_path / "model.gguf")
    digest = gguf_files.hash_file(file)
    with ThreadPoolExecutor(2) as pool:
        paths = set(pool.map(lambda _: gguf_files.converted(file, digest), range(2)))
    assert len(conversions) == len(paths) == 1
    assert gguf_files._is_intact(paths.pop(), digest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": ("blk.1.ffn_up.weight",)}, "lack weights that the model needs: model.layers.1.mlp.up_proj.weight"),
        ({"architecture": "qwen2"}, "lack weights that the model needs: model.layers.0.self_attn.k_proj.bias"),
        ({"parts": 2}, "is one of 2 parts of a model; merge them: llama-gguf-split --merge"),
    ],
)
def test_an_incomplete_file_is_refused(tmp_path: Path, cache: Path, options: dict[str, Any], message: str) -> None:
    file = write(tmp_path / "model.gguf", **options)
    assert refusal(file).startswith(f"{file}: ")
    assert message in refusal(file)
    assert folders(cache) == []


@pytest.mark.parametrize("step", ["mkdtemp", "save_pretrained"])
def test_a_full_disk_is_not_a_bad_file(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    import transformers

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_files.tempfile if step == "mkdtemp" else transformers.PreTrainedModel, step, fail)
    message = refusal(write(tmp_path / "model.gguf"))
    assert message == f"{cache}: cannot be written (No space left on device); set PROTOTOKENS_CACHE"
    assert folders(cache) == []
