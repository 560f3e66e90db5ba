"""What every frontend gives: a configuration, checkpoint tensors, how parameters are made from them, tokenizer files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...plans.checkpoint import Checkpoint, CheckpointTensor, open_checkpoint
from ...plans.digests import with_digests
from ...plans.errors import ModelError, WeightsError
from ...plans.recipe import Blocks, Cast, Dequantize, Recipe, Scales, Source, UnpermuteRope, map_sources
from ...plans.recipe_shapes import scale_shape
from ...plans.schema import SourceTensor
from ...plans.template import instantiate, is_templated
from ...plans.weight_layout import BLOCKS
from . import float8
from .checkpoint_names import CheckpointNames, Parts

PLAN_DTYPES = ("f32", "bf16", "f16")
PLAIN_ENCODINGS = frozenset({"F32", "F16", "BF16"})

_INDEX = re.compile(r"\{i(?:\+(\d+))?\}")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TokenizerFiles:
    """What an entrypoint needs to turn text into tokens and back.

    Encode with `tokenizer_json` *without* its own special tokens; `add_begin_token` says whether `begin_token` goes first.
    `special_tokens` maps a role as chat templates spell it ("bos_token", "eos_token", ...) to its text.
    """

    tokenizer_json: bytes
    chat_template: str
    special_tokens: dict[str, str]
    end_tokens: tuple[int, ...]
    begin_token: int | None
    add_begin_token: bool


@dataclass(frozen=True)
class Origin:
    """The checkpoint tensor (template) behind a parameter; `rope_heads` when its rows are interleaved for rope, per head."""

    tensor: str
    rope_heads: int | None = None


def same_name(parameter: str) -> Origin:
    """Checkpoints whose tensors are named as the module's parameters are."""
    return Origin(parameter)


@dataclass(frozen=True)
class ModelSource:
    """A model as read from its files, before anything is traced.

    `config` is a Hugging Face config.json dictionary (give libraries a copy: some change what they are given).
    `sources` and `checkpoint` are None for a shape-only model. `inputs` maps the role of each input to its SHA-256, in hex.
    `encodings` are the tensor encodings this frontend reads; `origin` raises ModelError for a parameter it cannot name.
    `names`, known once the model is traced, say how the parameters that have no tensor of their own name are stored. `notes`
    are sentences for the user, e.g. why there is no tokenizer. `float8` is what the configuration says of 8-bit floats.
    """

    name: str
    config: dict[str, Any]
    sources: tuple[SourceTensor, ...] | None
    checkpoint: Checkpoint | None
    tokenizer: TokenizerFiles | None
    inputs: dict[str, str]
    notes: tuple[str, ...] = ()
    origin: Callable[[str], Origin] = field(default=same_name, repr=False)
    encodings: frozenset[str] = PLAIN_ENCODINGS
    names: CheckpointNames = field(default_factory=CheckpointNames, repr=False)
    float8: float8.Float8 | None = None

    def recipe(self, parameter_template: str, dtype: str, shape: Sequence[int], layers: Iterable[int] | None = None) -> Recipe:
        """How the parameter is made from checkpoint tensors, as `dtype` ("f32", "bf16", "f16").

        Every instance of a templated name is checked against the checkpoint: present, of `shape`, in an encoding that is
        read. `layers` are the values of `{i}`; without it, every layer whose offsets stay within the model.
        Raises ModelError naming the tensor, what was expected and what was found.
        """
        if dtype not in PLAN_DTYPES:
            raise ModelError(
                "Weights cannot be made as this type.", where=parameter_template, expected=", ".join(PLAN_DTYPES), got=dtype
            )
        origin = self.origin(parameter_template)
        parts = self._parts(parameter_template, shape, layers)
        encoded: set[str] = set()
        scales: dict[str, Scales] = {}
        for tensor, size in parts.shapes.items():
            if self._encodings_of(tensor, parameter_template, size, layers) - PLAIN_ENCODINGS:
                encoded.add(tensor)
            of_floats = self._scales(tensor, parameter_template, size, layers)
            if of_floats is not None:
                scales[tensor] = of_floats

        def decoded(source: Source) -> Source | Dequantize:
            if source.name in scales:
                return Dequantize(source, scales[source.name])
            return Dequantize(source) if source.name in encoded else source

        recipe = map_sources(parts.recipe, decoded)
        if origin.rope_heads is not None:
            recipe = UnpermuteRope(recipe, origin.rope_heads)
        return Cast(recipe, dtype)

    def blocks(self, parameter_template: str, shape: Sequence[int], layers: Iterable[int] | None = None) -> Recipe:
        """How the parameter is made as the blocks that the checkpoint stores it in. Raises ModelError as `recipe` does."""
        origin = self.origin(parameter_template)
        parts = self._parts(parameter_template, shape, layers)
        scales: dict[str, Scales | None] = {}
        for tensor, size in parts.shapes.items():
            self._encodings_of(tensor, parameter_template, size, layers)
            scales[tensor] = self._scales(tensor, parameter_template, size, layers)
        recipe = map_sources(parts.recipe, lambda source: Blocks(source, scales[source.name]))
        return recipe if origin.rope_heads is None else UnpermuteRope(recipe, origin.rope_heads)

    def stored_types(self, parameter_template: str, shape: Sequence[int], layers: Iterable[int] | None = None) -> set[str]:
        """The encodings of the tensors behind a parameter, in lower case; of a shape-only model 8-bit floats alone are known.

        8-bit floats whose scales do not fit the blocks that kernels read are "f8_e4m3 of other blocks".
        """
        found: set[str] = set()
        for tensor, size in self._parts(parameter_template, shape, layers).shapes.items():
            scales = self._scales(tensor, parameter_template, size, layers)
            if scales is not None:
                fits = scales.columns % BLOCKS["e4m3_128"][0] == 0 or scales.columns >= size[-1]
                found.add(float8.ENCODING.lower() if fits else f"{float8.ENCODING.lower()} of other blocks")
            elif self.checkpoint is not None:
                names = (instantiate(tensor, i) for i in self._layers(tensor, layers))
                found |= {self.checkpoint.tensors[name].encoding.lower() for name in names if name in self.checkpoint.tensors}
            else:
                found.add("plain")
        return found

    def declared_encodings(self, parameter: str, shape: Sequence[int]) -> dict[str, tuple[str | None, tuple[int, ...]]]:
        """Encoding (None: that of the model's type) and shape of each tensor behind a parameter of a shape-only model."""
        found: dict[str, tuple[str | None, tuple[int, ...]]] = {}
        for tensor, size in self.names.parts(parameter, shape).shapes.items():
            scales = self._scales(tensor, parameter, size, [0])
            found[tensor] = None if scales is None else float8.ENCODING, size
            if scales is not None:
                found[scales.of.name] = "F32", scale_shape(size, scales)
        return found

    def _parts(self, parameter_template: str, shape: Sequence[int], layers: Iterable[int] | None) -> Parts:
        """How a parameter is made, with nothing decoded yet."""
        origin = self.origin(parameter_template)
        if origin == Origin(parameter_template) and not self._holds(parameter_template, layers):
            return self.names.parts(parameter_template, shape)
        return Parts(Source(origin.tensor), {origin.tensor: tuple(shape)})

    def _encodings_of(self, tensor: str, parameter: str, size: Sequence[int], layers: Iterable[int] | None) -> set[str]:
        """Of every instance of a tensor, once each is known to be there and readable; none of a shape-only model."""
        if self.checkpoint is None:
            return set()
        read = self.encodings | ({float8.ENCODING} if self.float8 is not None else set())
        instances = (instantiate(tensor, i) for i in self._layers(tensor, layers))
        return {_checked(self.checkpoint.tensors, name, parameter, size, read) for name in instances}

    def _scales(self, tensor: str, parameter: str, size: Sequence[int], layers: Iterable[int] | None) -> Scales | None:
        """Of a tensor of 8-bit floats; None of any other. Raises ModelError when layers differ in that."""
        if self.float8 is None or len(size) < 2:
            return None
        instances = [instantiate(tensor, i) for i in self._layers(tensor, layers)]
        if self.checkpoint is None:
            held = {self.float8.holds(name) and self.names.is_matrix(parameter) for name in instances}
        else:
            tensors = self.checkpoint.tensors
            held = {tensors[name].encoding == float8.ENCODING for name in instances if name in tensors}
        if held == {True, False}:
            raise ModelError(
                "Layers of a kind differ in whether a matrix is in 8-bit floats, which is not read yet.",
                where=parameter,
                expected=f"{float8.ENCODING} in all of layers {self._layers(tensor, layers)}, or in none",
                fix="use the unquantized checkpoint",
            )
        if held != {True}:
            return None
        if self.checkpoint is None:
            return self.float8.scales(tensor, size)
        found = [self.float8.scales_in(self.checkpoint.tensors, name, size) for name in instances]
        suffix = found[0].of.name.removeprefix(instances[0])
        return Scales(Source(tensor + suffix), found[0].rows, found[0].columns)

    def digests(self, progress: Progress | None = None, names: Iterable[str] | None = None) -> tuple[SourceTensor, ...]:
        """The sources (those in `names`, if given) with their digests; reads every byte of them.

        `progress(done, total)` is called in the calling thread with bytes hashed so far. A shape-only model has none: ().
        """
        if self.checkpoint is None or self.sources is None:
            return ()
        wanted = None if names is None else set(names)
        chosen = [source for source in self.sources if wanted is None or source.name in wanted]
        total, done, found = sum(source.bytes for source in chosen), 0, []
        read = self.checkpoint.read
        # hashing releases the interpreter lock, so threads scale to the number of cores
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for source in pool.map(lambda source: with_digests(source, read(source.name)), chosen):
                found.append(source)
                done += source.bytes
                if progress is not None:
                    progress(done, total)
        return tuple(found)

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a generation: the tokenizer files', else the configuration's."""
        return self.tokenizer.end_tokens if self.tokenizer else token_ids(self.config.get("eos_token_id"))

    def _holds(self, template: str, layers: Iterable[int] | None) -> bool:
        """Whether the checkpoint has tensors of this name."""
        tensors = self.checkpoint.tensors if self.checkpoint is not None else {}
        return any(instantiate(template, i) in tensors for i in self._layers(template, layers))

    def _layers(self, template: str, layers: Iterable[int] | None) -> Sequence[int]:
        if not is_templated(template):
            return [0]
        if layers is not None:
            return list(layers)
        depth = self.config.get("num_hidden_layers")
        if not isinstance(depth, int):
            return _layers_present(template, self.checkpoint.tensors if self.checkpoint else ())
        return range(depth - max(int(offset or 0) for offset in _INDEX.findall(template)))


def open_weights(path: Path) -> Checkpoint:
    """The checkpoint at `path`. To the compiler, weights that are missing or damaged are a fault of the model: ModelError."""
    try:
        return open_checkpoint(path)
    except WeightsError as error:
        raise ModelError(error.what, where=error.where, expected=error.expected, got=error.got, fix=error.fix) from None


def source_tensors(checkpoint: Checkpoint) -> tuple[SourceTensor, ...]:
    """All tensors of a checkpoint, by name, without digests."""
    tensors = sorted(checkpoint.tensors.values(), key=lambda tensor: tensor.name)
    return tuple(SourceTensor(name=t.name, encoding=t.encoding, shape=tuple(t.shape), bytes=t.bytes) for t in tensors)


def token_ids(value: object) -> tuple[int, ...]:
    """Token ids of a configuration field that may be absent, one id, or a list of ids."""
    found = value if isinstance(value, list) else [value]
    return tuple(token for token in found if isinstance(token, int) and not isinstance(token, bool))


def _layers_present(template: str, names: Iterable[str]) -> list[int]:
    """Layers that the checkpoint has, for configurations that call their number of layers something else; [0] for none."""
    fixed = _INDEX.split(template)[::2]
    pattern = re.compile(r"(\d+)".join(re.escape(part) for part in fixed))
    first = int(_INDEX.findall(template)[0] or 0)
    found = {int(match[1]) - first for name in names if (match := pattern.fullmatch(name))}
    return sorted(layer for layer in found if layer >= 0) or [0]


def _checked(
    tensors: Mapping[str, CheckpointTensor], name: str, parameter: str, shape: Sequence[int], encodings: frozenset[str]
) -> str:
    """The encoding of tensor `name`, once it is known to be there, of the right shape, and readable."""
    tensor = tensors.get(name)
    if tensor is None:
        raise ModelError(
            "A parameter of the model has no tensor in the checkpoint.",
            where=parameter,
            expected=f"tensor {name}",
            got=f"{len(tensors)} tensors, none of that name",
            fix="check that config.json and the weights are of the same model, and that no shard is missing",
        )
    if tuple(tensor.shape) != tuple(shape):
        raise ModelError(
            "A checkpoint tensor has another shape than the configuration asks for.",
            where=name,
            expected=f"{list(shape)} for {parameter}",
            got=str(list(tensor.shape)),
            fix="check that config.json and the weights are of the same model",
        )
    if tensor.encoding not in encodings:
        raise ModelError(
            "A checkpoint tensor is stored in an encoding that is not read.",
            where=name,
            expected=", ".join(sorted(encodings)),
            got=tensor.encoding,
            fix="convert the checkpoint to one of these, e.g. bfloat16",
        )
    return tensor.encoding
