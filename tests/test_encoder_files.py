"""Encoders in files: what is saved is what is loaded, former ones are read, and damage is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional

from encoders import CONFIG, TRUNK_CONFIGS, random_encoder, same
from families import batch, family
from prototokens import FrozenLM, InputError, decode, load, preset, save
from prototokens.arrangements import ARRANGEMENTS
from prototokens.encoder import encoding
from prototokens.encoder.config import EncoderConfig
from prototokens.encoder.encoding import Encoder, shipped_encoder
from prototokens.encoder.evaluate import control_vectors
from prototokens.files.record import read_record, write_record
from prototokens.fitting.starter import Starter, save_starter
from prototokens.lm.identity import Identity


def former(lm: FrozenLM, folder: Path, trunk: str = "perceptron", **changes: Any) -> dict[str, torch.Tensor]:
    """Write an encoder as former versions did, for texts of at most three tokens; its weights."""
    config = replace(CONFIG, block_length=3, neighbours=0, trunk=trunk)
    random_encoder(lm, config).save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors, record = read_record(path, "an encoder")
    if trunk == "perceptron":
        tensors["trunk.slots"] = tensors["trunk.slots"].unflatten(0, (3, -1))  # (T, P, W)
    arrangement = ARRANGEMENTS["m,e,m*(n-1)"].to_json()
    kept = {name: value for name, value in record["config"].items() if name not in ("block_length", "neighbours")}
    record["config"] = kept | {"arrangement": arrangement, "e_tokens": 1, "max_tokens": 3} | changes
    write_record(path, "an encoder", tensors, record, overwrite=True)
    return tensors


def formula(w: dict[str, torch.Tensor], embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a former perceptron writes for a text's embeddings (T, D), step by step: e (D,) and m (D,)."""
    features = (embeddings - w["embedding_mean"]) / w["embedding_std"]
    tokens = features @ w["trunk.token.weight"].T + w["trunk.token.bias"]
    summed = sum(token @ slot for token, slot in zip(tokens, w["trunk.slots"], strict=False))
    hidden = functional.gelu(summed / len(tokens) ** 0.5 + w["trunk.by_length"][len(tokens) - 1])
    layer = 0
    while f"trunk.blocks.{layer}.1.weight" in w:
        norm, linear = ((w[f"trunk.blocks.{layer}.{i}.weight"], w[f"trunk.blocks.{layer}.{i}.bias"]) for i in (0, 1))
        normed = functional.layer_norm(hidden, hidden.shape[-1:], *norm)
        hidden, layer = hidden + functional.gelu(functional.linear(normed, *linear)), layer + 1
    offsets = functional.linear(hidden, w["head.weight"], w["head.bias"]).view(2, -1)
    offsets = offsets * w["embedding_std"] * w["log_scale"].exp()
    return embeddings.mean(0) + w["start_e"] + offsets[0], w["start_m"] + offsets[1]


def test_a_former_encoder_writes_what_it_wrote(lm: FrozenLM, tmp_path: Path) -> None:
    weights = former(lm, tmp_path)
    encoder = Encoder.from_pretrained(tmp_path)
    assert (encoder.config.block_length, encoder.config.neighbours) == (3, 0)
    for text in ("a", "ab", "abc"):
        ids = lm.encode(text)
        e, m = encoder.vectors(lm, ids.unsqueeze(0))
        expected_e, expected_m = formula(weights, lm.embed(ids))
        assert torch.allclose(e[0, 0], expected_e, atol=1e-4)
        assert torch.allclose(m[0], expected_m, atol=1e-4)
    assert encoder(lm, "abcdefg").e.shape == (3, lm.width)  # longer texts are blocks


def test_the_shipped_encoder_writes_what_it_wrote() -> None:
    folder = Path(str(files("prototokens"))) / "shipped" / "encoders" / "smollm2-135m"
    weights = {name: w.float() for name, w in read_record(folder / "model.safetensors", "an encoder")[0].items()}
    embeddings = torch.randn(8, 576, generator=torch.Generator().manual_seed(0)) * weights["embedding_std"]
    e, m = Encoder.from_pretrained(folder).network(embeddings.unsqueeze(0))
    expected_e, expected_m = formula(weights, embeddings)
    assert torch.allclose(e[0, 0], expected_e, atol=1e-4)
    assert torch.allclose(m[0], expected_m, atol=1e-4)


def test_a_former_transformer_is_read_as_one_block(llama: FrozenLM, tmp_path: Path) -> None:
    former(llama, tmp_path, "transformer")
    same_weights = random_encoder(llama, replace(CONFIG, block_length=3, neighbours=0, trunk="transformer"))
    assert same(Encoder.from_pretrained(tmp_path), same_weights)


def test_a_former_encoder_keeps_its_start(llama: FrozenLM, tmp_path: Path) -> None:
    former(llama, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors, record = read_record(path, "an encoder")
    e, m = torch.randn(2, llama.width, generator=torch.Generator().manual_seed(0))
    start = Starter(e, m, ARRANGEMENTS["m,e,m*(n-1)"], llama.identity, {})
    save_starter(tmp_path / "start.safetensors", start)
    record["training"]["start"] = start.name
    write_record(path, "an encoder", tensors, record, overwrite=True)
    ids = batch(llama, "abc")
    e, m = control_vectors("start", Encoder.from_pretrained(tmp_path), llama, ids)
    assert torch.allclose(e[0, 0], llama.embed(ids[0]).mean(0) + start.e, atol=1e-5)
    assert torch.equal(m[0], start.m)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"e_tokens": 2}, r"of a former version, with 2 e-tokens in 'm,e,m\*\(n-1\)'; .* train one \(prototokens"),
        ({"arrangement": ARRANGEMENTS["e,m*n"].to_json()}, r"of a former version, with 1 e-tokens in 'e,m\*n'"),
        ({"arrangement": None}, "its record cannot be read"),
        ({"max_tokens": 4}, r"its weight trunk\.by_length is \(3, 32\), and its config makes it \(4, 32\)"),
        ({"max_tokens": "3"}, "its record cannot be read"),
    ],
)
def test_a_former_encoder_that_is_not_one_block_is_refused(
    llama: FrozenLM, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    former(llama, tmp_path, **changes)
    with pytest.raises(InputError, match=message) as error:
        Encoder.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", TRUNK_CONFIGS, ids=["perceptron", "transformer", "hidden"])
def test_save_and_load_is_the_identity(llama: FrozenLM, config: EncoderConfig, tmp_path: Path) -> None:
    encoder = random_encoder(llama, config)
    folder = encoder.save_pretrained(tmp_path / "mine")
    loaded = Encoder.from_pretrained(folder)
    assert same(loaded, encoder)
    assert loaded.name == encoder.name
    assert json.loads(json.dumps(loaded.training)) == json.loads(json.dumps(encoder.training))
    assert json.loads((folder / "config.json").read_text())["model"]["fingerprint"] == llama.identity.fingerprint
    assert (folder / "README.md").read_text().startswith("---\nlibrary_name: prototokens\n")
    ids = batch(llama, "abc")
    assert torch.equal(loaded.vectors(llama, ids)[0], encoder.vectors(llama, ids)[0])
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_a_name_follows_the_weights_and_is_hashed_once(llama: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    hashes: list[str] = []

    def counted(weights: list[torch.Tensor]) -> str:
        hashes.append(hashed(weights))
        return hashes[-1]

    hashed = encoding._hashed
    monkeypatch.setattr(encoding, "_hashed", counted)
    encoder = random_encoder(llama)
    first = encoder.name
    assert (encoder.name, replace(encoder, training={}).name, len(hashes)) == (first, first, 1)
    optimiser = torch.optim.AdamW(encoder.network.parameters(), lr=0.1)
    encoder.network(llama.embed(torch.ones(1, 4, dtype=torch.long)))[0].sum().backward()
    optimiser.step()
    assert encoder.name != first
    encoder.network.load_state_dict(random_encoder(llama).network.state_dict())
    assert encoder.name == first
    with torch.inference_mode():
        other = random_encoder(llama, seed=1)
        assert (other.name, other.name) == (hashes[-1], hashes[-2])
    assert len(hashes) == 5


def test_half_the_bytes_on_disk_and_float32_in_use(llama: FrozenLM, tmp_path: Path) -> None:
    encoder = random_encoder(llama)
    folder = encoder.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(k).dtype for k in file.keys()} == {torch.bfloat16}  # noqa: SIM118 - not a dict
    loaded = Encoder.from_pretrained(folder)
    assert {p.dtype for p in loaded.network.parameters()} == {torch.float32}
    ids = batch(llama, "abc")
    assert torch.allclose(loaded.vectors(llama, ids)[0], encoder.vectors(llama, ids)[0], rtol=0.1, atol=0.1)


def test_damage_and_strangers_are_refused(llama: FrozenLM, tmp_path: Path) -> None:
    folder = random_encoder(llama).save_pretrained(tmp_path / "mine")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match="damaged"):
        Encoder.from_pretrained(folder)
    save(tmp_path / "tokens", random_encoder(llama)(llama, "ab"))
    path.write_bytes((tmp_path / "tokens").read_bytes())
    with pytest.raises(InputError, match="holds proto-tokens, not an encoder"):
        Encoder.from_pretrained(folder)
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        Encoder.from_pretrained(folder)
    with pytest.raises(InputError, match="no folder of an encoder"):
        Encoder.from_pretrained(tmp_path / "nothing")
    with pytest.raises(InputError, match="unknown encoder 'no/such-encoder': no such folder"):
        Encoder.from_pretrained("no/such-encoder")
    with pytest.raises(InputError, match="cannot be made a folder"):
        random_encoder(llama).save_pretrained(tmp_path / "tokens")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["config"].update(width=30_000), "its weight .* is .*, and its config makes it"),
        (
            lambda r: r["config"].update(block_length=10**5),
            r"its weight trunk\.by_length is \(2, 32\), and its config makes",
        ),
        (lambda r: r["config"].update(block_length=10**9), "blocks of 1000000000 tokens: they must have 1 to"),
        (
            lambda r: r["config"].update(neighbours=10**9),
            r"its weight trunk\.slots is \(64, 32\), and its config makes",
        ),
        (lambda r: r.update(width=10**9), "its config makes it"),
        (lambda r: r["config"].update(layers=10**9), "its config asks for 1000000000 layers, and it holds 15 tensors"),
        (lambda r: r["config"].update(layers=3), "is missing, and its config makes it"),
        (lambda r: r["config"].update(layers=1), "and its config makes it superfluous"),
        (lambda r: r["config"].update(width="32"), "its record cannot be read"),
        (lambda r: r["model"].update(fingerprint=5), "the model's fingerprint is 5; it must be text"),
        (lambda r: r.update(training=None), "its record cannot be read"),
    ],
)
def test_a_record_that_claims_other_weights_is_refused_before_memory_is_taken(
    llama: FrozenLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    folder = random_encoder(llama).save_pretrained(tmp_path / "mine")
    tensors, record = read_record(folder / "model.safetensors", "an encoder")
    change(record)
    write_record(folder / "model.safetensors", "an encoder", tensors, record, overwrite=True)
    places = []
    build = encoding.EncoderNetwork.__init__

    def watched(self: Any, *arguments: Any) -> None:
        places.append(torch.empty(0).device.type)
        build(self, *arguments)

    monkeypatch.setattr(encoding.EncoderNetwork, "__init__", watched)
    with pytest.raises(InputError, match=message) as error:
        Encoder.from_pretrained(folder)
    assert str(error.value).startswith(f"{folder}: ")
    assert set(places) <= {"meta"}


def test_the_shipped_encoder_is_found_by_its_model(
    llama: FrozenLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no encoder for LlamaForCausalLM comes with the package"):
        shipped_encoder(llama.identity)
    gpt2 = family("gpt2")
    for name, lm in (("one", gpt2), ("two", llama)):
        random_encoder(lm).save_pretrained(tmp_path / "shipped" / "encoders" / name)
    monkeypatch.setattr("prototokens.encoder.encoding.files", lambda _: tmp_path)
    assert shipped_encoder(llama.identity).model == llama.identity
    assert shipped_encoder(gpt2.identity).model == gpt2.identity
    with pytest.raises(InputError, match="prototokens encoder train"):
        shipped_encoder(Identity("x", None, "1", "2"))


def test_uploads_hold_the_whole_folder(llama: FrozenLM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict = {}

    class Hub:
        def __init__(self, token: str | None) -> None:
            seen["token"] = token

        def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
            seen["repo"] = (name, private, exist_ok)

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> str:
            seen["files"] = sorted(p.name for p in Path(folder_path).iterdir())
            seen["loaded"] = Encoder.from_pretrained(folder_path)
            return f"https://hub/{repo_id}"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    encoder = random_encoder(llama)
    assert encoder.push_to_hub("me/mine", private=True, token="t") == "https://hub/me/mine"
    assert (seen["token"], seen["repo"]) == ("t", ("me/mine", True, True))
    assert seen["files"] == ["README.md", "config.json", "model.safetensors"]
    assert same(seen["loaded"], encoder)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("401 unauthorised")

    monkeypatch.setattr(Hub, "create_repo", refuse)
    with pytest.raises(InputError, match=r"me/mine: the Hub did not take it \(401 unauthorised\)"):
        encoder.push_to_hub("me/mine")


def test_an_encoder_s_file_is_a_file_of_fits(llama: FrozenLM, tmp_path: Path) -> None:
    tokens = random_encoder(llama)(llama, "abc")
    back = load(save(tmp_path / "abc", tokens))
    assert back.provenance == tokens.provenance
    assert back.provenance.preset == preset().preset
    assert torch.equal(decode(llama, back).ids, decode(llama, tokens).ids)
