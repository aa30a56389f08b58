"""Encoder: texts to proto-tokens in one pass, for one language model."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, overload
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..errors import InputError
from ..fitting.checks import check_arguments, check_room, check_shape
from ..fitting.fit import FitResult, fit_batch
from ..fitting.given import Given
from ..fitting.recipes import FitConfig, preset
from ..fitting.starter import Starter, shipped_starter
from ..lm.frozen import FrozenLM
from ..lm.identity import Identity, check_same_model, hash_weights, library_versions, same_weights
from ..proto_tokens import ProtoTokens
from .card import model_card
from .config import EncoderConfig
from .folder import read_folder, upload, write_folder
from .former import config_of_one_block, is_former, start_of_one_block, weights_of_one_block
from .network import EncoderNetwork

_TOKENS_PER_BATCH = 4096  # of one pass of the encoder


@dataclass(frozen=True, eq=False)
class Encoder:
    """A network that writes e and m for a text of one language model.

    `encoder(lm, text)` gives proto-tokens, `encoder(lm, texts)` those of a list; `encode` takes a batch of one length
    and refines. `vectors` gives e and m alone: for training, and for fits that start from them
    (`Given(e_start=..., m_start=...)`).

    Attributes:
        config: how it is built.
        model: the language model that it belongs to; it serves no other.
        network: the weights, float32.
        training: how it was trained: settings, steps, tokens, versions.
        starter: the learned start that it was trained from, if it was trained from one and its folder holds it.
    """

    config: EncoderConfig
    model: Identity
    network: EncoderNetwork
    training: dict[str, Any]
    starter: Starter | None = None

    @classmethod
    def untrained(
        cls, lm: FrozenLM, config: EncoderConfig | None = None, starter: Starter | None = None, *, seed: int = 0
    ) -> Encoder:
        """An encoder that gives the learned start for every text.

        Args:
            lm: the language model that it is for.
            config: how to build it.
            starter: the learned start; if None, the one that the package holds for the model and arrangement, or else
                the mean embeddings of the text (e) and of the vocabulary (m).
            seed: what the trunk's weights are drawn from.

        Raises:
            InputError: the start is for another model or arrangement, or the config does not suit the model.
        """
        config = config or EncoderConfig()
        if starter is None:
            starter = shipped_starter(lm.identity, config.arrangement)
        else:
            starter.check(lm.identity, config.arrangement)
        hidden = _hidden(lm, config, torch.zeros(1, 1, dtype=torch.long))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = EncoderNetwork(config, lm.width, 0 if hidden is None else hidden.shape[-1])
        network.begin_at(lm.embedding_statistics, starter)
        training = {"step": 0, "start": starter.name if starter else "text-e", "versions": library_versions()}
        return cls(config, lm.identity, network.to(lm.device), training, starter)

    @property
    def name(self) -> str:
        """A short name that tells encoders apart: `encoder-` and the first digits of a hash of the weights.

        It is worked out anew only when the weights have changed: a hash takes longer than the pass of a short text.
        """
        weights = list(self.network.state_dict().values())
        if any(tensor.is_inference() for tensor in weights):  # these do not count their changes
            return _hashed(weights)
        state = [(tensor.data_ptr(), tensor._version) for tensor in weights]
        known = _NAMES.get(self.network)
        if known is None or known.state != state:
            known = _NAMES[self.network] = _Name(_hashed(weights), state, weights)
        return known.name

    @cached_property
    def n_weights(self) -> int:
        """The number of trained weights."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def trained_from(self) -> Starter | str:
        """The start that the encoder was trained from, as `FitConfig.start` takes it.

        Raises:
            InputError: it was a learned start that neither the encoder's folder nor the package holds.
        """
        name = self.training.get("start")
        if name == "text-e":
            return name
        shipped = shipped_starter(self.model, self.config.arrangement)
        for starter in (self.starter, shipped):
            if starter is not None and name in (starter.name, starter.training.get("name")):
                return starter
        raise InputError(
            f"this encoder was trained from the learned start {name}, and its folder does not hold it "
            "(start.safetensors)"
        )

    def check(self, model: Identity) -> None:
        """Refuse another model, and say which one this encoder is for."""
        check_same_model("this encoder belongs", self.model, model)

    def features(self, lm: FrozenLM, target_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the network reads, without gradients: embeddings (B, T, D) and hidden states (B, T, H) or None.

        Raises:
            InputError: the ids are for another model, or more than its positions take.
        """
        self.check(lm.identity)
        check_shape(target_ids)
        check_room(lm, self.config.arrangement.layout(target_ids.shape[1]))
        return lm.embed(target_ids), _hidden(lm, self.config, target_ids)

    def vectors(self, lm: FrozenLM, target_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The proto-tokens of texts of one length, not yet scored.

        Args:
            lm: the language model that the encoder belongs to.
            target_ids: int64, (B, T).

        Returns:
            e (B, K, D) and m (B, D), float32, on the model's device, differentiable in the network's weights.

        Raises:
            InputError: see `features`.
        """
        embeddings, hidden = self.features(lm, target_ids)
        if self.network.start_e.device != lm.device:
            self.network.to(lm.device)
        return self.network(embeddings, hidden)

    @overload
    def __call__(self, lm: FrozenLM, text: str | Tensor) -> ProtoTokens: ...

    @overload
    def __call__(
        self, lm: FrozenLM, text: list[str] | list[Tensor] | tuple[str | Tensor, ...]
    ) -> list[ProtoTokens]: ...

    def __call__(self, lm: FrozenLM, text: Any) -> Any:
        """Proto-tokens of a text or of its ids (T,), or a list of them for a list, scored by decoding them.

        Texts of one length are one batch. Errors as in `encode`.
        """
        several = isinstance(text, list | tuple)
        target_ids = [self._ids(lm, one) for one in (text if several else [text])]
        positions_of: dict[int, list[int]] = {}  # by length, where its texts stand in the list
        for position, ids in enumerate(target_ids):
            positions_of.setdefault(len(ids), []).append(position)
        tokens: dict[int, ProtoTokens] = {}
        for positions in positions_of.values():
            results = encode(lm, self, torch.stack([target_ids[position] for position in positions]))
            tokens |= zip(positions, (result.tokens for result in results), strict=True)
        return [tokens[position] for position in range(len(target_ids))] if several else tokens[0]

    def _ids(self, lm: FrozenLM, text: object) -> Tensor:
        """The ids of a text, (T,), on the CPU."""
        ids = lm.encode(text) if isinstance(text, str) and isinstance(lm, FrozenLM) else text
        if not isinstance(ids, str | Tensor):
            raise InputError(f"text is of type {type(ids).__name__}; it must be a string, or its ids: lm.encode(text)")
        check_arguments(lm, ids, None, None)
        assert isinstance(ids, Tensor)
        return ids.cpu()

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> Path:
        """Write `config.json`, `model.safetensors`, a model card and the learned start into a folder.

        Args:
            folder: where; it is made if it does not exist, and an encoder in it is replaced.
            dtype: of the weights on disk; `torch.bfloat16` halves the file. They are float32 again when loaded.

        Raises:
            InputError: the folder cannot be written.
        """
        tensors = {name: tensor.to(dtype) for name, tensor in self.network.state_dict().items()}
        return write_folder(folder, tensors, self._record(), model_card(self._record()), self.starter)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], *, revision: str | None = None) -> Encoder:
        """Load an encoder from a folder, or from the Hub.

        Raises:
            InputError: there is no such encoder, it is damaged, or its weights do not match its config.
        """
        tensors, record, starter = read_folder(name, revision)
        try:
            described = record["config"]
            if is_former(described):
                described, tensors = config_of_one_block(described), weights_of_one_block(tensors)
                starter = start_of_one_block(starter, described["block_length"])
            config = EncoderConfig.from_json(described)
            network = _network_of(config, record["width"], record["hidden_width"], tensors)
            return cls(config, Identity(**record["model"]), network, dict(record["training"]), starter)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
            raise InputError(f"{name}: its record cannot be read ({' '.join(str(error).split())[:200]})") from None

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload to a repository on the Hub, made if it does not exist; its address. Errors as in `upload`."""
        return upload(repo_id, self.save_pretrained, private=private, token=token)

    def _record(self) -> dict[str, Any]:
        return {
            "config": self.config.to_json(),
            "width": self.network.width,
            "hidden_width": self.network.hidden_width,
            "model": asdict(self.model),
            "training": self.training,
        }


@dataclass(frozen=True, eq=False)
class _Name:
    """An encoder's name, and of each weight its address and number of changes; the weights keep their addresses."""

    name: str
    state: list[tuple[int, int]]
    weights: list[Tensor]


_NAMES: WeakKeyDictionary[EncoderNetwork, _Name] = WeakKeyDictionary()


def _hashed(weights: list[Tensor]) -> str:
    return f"encoder-{hash_weights(weights)[:12]}"


@torch.no_grad()
def encoder_vectors(encoder: Encoder, lm: FrozenLM, target_ids: Tensor) -> tuple[Tensor, Tensor]:
    """An encoder's vectors for texts of one length (B, T), computed in small batches: e (B, K, D) and m (B, D)."""
    batch_size = max(1, _TOKENS_PER_BATCH // max(1, target_ids.shape[-1]))
    batches = [encoder.vectors(lm, ids) for ids in target_ids.split(batch_size)]
    return torch.cat([e for e, _ in batches]), torch.cat([m for _, m in batches])


@torch.inference_mode(False)
def encode(
    lm: FrozenLM, encoder: Encoder, target_ids: Tensor, *, refine: int = 0, recipe: FitConfig | None = None
) -> list[FitResult]:
    """Write proto-tokens in one pass of the encoder, refine them by fit steps if asked for, and score them by decoding.

    Args:
        lm: the language model that the encoder belongs to.
        encoder: the encoder.
        target_ids: texts of one length, int64, (B, T).
        refine: the most fit steps for each text; a text that meets the recipe's stopping rule takes no more.
        recipe: how to refine; the default preset if None. Its arrangement, number of e-tokens, start, perturbation and
            step budget are ignored.

    Returns:
        One result per text, as from `fit_batch`; `steps` is 0 without refinement. `seconds` and `token_positions`
        include the encoder's pass and the hidden states that it reads.

    Raises:
        InputError: an argument is of another type; or see `Encoder.vectors` and `fit_batch`.
    """
    if not isinstance(encoder, Encoder):
        raise InputError(
            f"encoder is of type {type(encoder).__name__}; it must be an Encoder: Encoder.from_pretrained(name)"
        )
    check_arguments(lm, target_ids, recipe, None)
    if refine < 0:
        raise InputError(f"refine is {refine}; it must be at least 0 fit steps")
    config = refinement(encoder, refine, recipe)
    began = time.perf_counter()
    e, m = encoder_vectors(encoder, lm, target_ids)
    seconds = time.perf_counter() - began
    results = fit_batch(lm, target_ids, config, Given(e_start=e, m_start=m))
    name, positions_read = encoder.name, 0 if encoder.config.hidden_layer is None else target_ids.shape[1]
    return [
        replace(
            result,
            tokens=replace(result.tokens, provenance=replace(result.tokens.provenance, start=name)),
            seconds=result.seconds + seconds,
            token_positions=result.token_positions + positions_read,
        )
        for result in results
    ]


def _network_of(config: EncoderConfig, width: int, hidden_width: int, tensors: dict[str, Tensor]) -> EncoderNetwork:
    """A network that holds these weights, in float32. No memory is taken for what the config only claims.

    Raises:
        InputError: the config describes other weights.
    """
    if config.layers > len(tensors):
        raise InputError(f"its config asks for {config.layers} layers, and it holds {len(tensors)} tensors")
    with torch.device("meta"):
        network = EncoderNetwork(config, width, hidden_width)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name in sorted(shapes.keys() | tensors.keys()):
        shape = tuple(tensors[name].shape) if name in tensors else "missing"
        if shape != shapes.get(name):
            raise InputError(f"its weight {name} is {shape}, and its config makes it {shapes.get(name, 'superfluous')}")
    # Copied, since a file's tensors may lie at odd addresses, where kernels round in another way.
    weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    network.load_state_dict(weights, assign=True)
    return network


def refinement(encoder: Encoder, steps: int, recipe: FitConfig | None = None) -> FitConfig:
    """The recipe of a fit of at most `steps` steps from an encoder's vectors."""
    recipe = recipe or preset()
    return replace(
        recipe,
        arrangement=encoder.config.arrangement,
        e_tokens=1,  # without meaning in blocks
        tokens_per_vector=None,
        start="auto",  # ignored: both vectors are given
        perturbation=0.0,
        restarts=1,
        stop=replace(recipe.stop, max_steps=steps),
    )


def shipped_encoder(model: Identity) -> Encoder:
    """The encoder that comes with the package for this model.

    Raises:
        InputError: there is none.
    """
    with as_file(files("prototokens") / "shipped" / "encoders") as path:
        for folder in sorted(path.iterdir()) if path.is_dir() else ():
            encoder = Encoder.from_pretrained(folder)
            if same_weights(encoder.model.fingerprint, model.fingerprint):
                return encoder
    raise InputError(
        f"no encoder for {model.name} comes with the package: name one (--encoder PATH), "
        "or make one (prototokens encoder train)"
    )


def _hidden(lm: FrozenLM, config: EncoderConfig, target_ids: Tensor) -> Tensor | None:
    return None if config.hidden_layer is None else lm.hidden_states(target_ids, config.hidden_layer)
