"""Attention that a model writes out itself, found in its exported graph and replaced by the one attention operation.

What lies between the products of queries with keys and the softmax is run on numbers: it tells the scale, which keys each
query sees, and whether anything else is done to the scores. Only causal attention, with a window or without, is replaced; it may
have linear biases (alibi).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_arg

from ...plans.errors import ModelError
from .added_constants import add_constant
from .alibi import slopes_of, with_columns_of_positions
from .causality import NotCausal
from .mask_reach import tokens_to_look_at

MOST_SCORES = 1 << 27
"""Of all heads together, that are worked out to look at a mask."""
HIDDEN = -5000.0
"""Scores below are those of keys that are not seen; models use -10000 and less."""

_OF_16_BITS = (torch.bfloat16, torch.float16)
_PRODUCTS = {"aten.matmul.default", "aten.bmm.default"}
_SOFTMAXES = {"aten.softmax.int", "aten._softmax.default"}
_CASTS_AND_VIEWS = {
    "aten._to_copy.default",
    "aten._unsafe_view.default",
    "aten.clone.default",
    "aten.contiguous.default",
    "aten.dropout.default",
    "aten.expand.default",
    "aten.reshape.default",
    "aten.type_as.default",
    "aten.view.default",
}
_OF_A_SHAPE = {"aten.full_like.default", "aten.ones_like.default", "aten.zeros_like.default"}
"""What they give depends on their input's shape alone."""


def replace_eager_attention(exported: ExportedProgram, constants: dict[str, Tensor], name: str, context: int = 0) -> int:
    """Replace attention written out in the graph, in place; gives back how often.

    No sequence is longer than `context` tokens (0: not known). `constants` gets what the replacement needs beside.

    Raises NotCausal if attention is found that is not causal, ModelError if it does to its scores what is not known here.
    """
    known = _Known(exported, constants, name, context)
    found = [node for node in exported.graph.nodes if str(node.target) in _SOFTMAXES]
    return sum(_replace(node, known) for node in found)


class _Known:
    """Which nodes depend on texts or weights, and the values of those that do not."""

    def __init__(self, exported: ExportedProgram, constants: dict[str, Tensor], name: str, context: int) -> None:
        self.exported, self.constants, self.name, self.context = exported, constants, name, context
        self.data: set[Node] = set()
        self.given: dict[Node, Tensor] = {}
        self.added: dict[str, Node] = {}
        self.widened = any(node.op == "placeholder" and _is_of_16_bits(node.meta.get("val")) for node in exported.graph.nodes)
        nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
        self.texts: list[Node] = []
        for spec in exported.graph_signature.input_specs:
            node, target = nodes[spec.arg.name], (spec.target or "").removeprefix("model.")
            if spec.kind == InputKind.USER_INPUT:
                self.texts.append(node)
                if len(self.texts) == 1:
                    self.data.add(node)
            elif target in constants:
                self.given[node] = constants[target]
            elif isinstance(held := exported.constants.get(spec.target or ""), Tensor) and held.device.type == "cpu":
                self.given[node] = held
            else:
                self.data.add(node)
        for node in exported.graph.nodes:
            if any(source in self.data for source in _read_by(node)) and _holds_tensors(node.meta.get("val")):
                self.data.add(node)

    def tokens(self, softmax: Node, product: Node) -> int:
        """How many tokens of the mask between the two have to be looked at, to know it."""
        made: set[Node] = set()
        waiting = [softmax.args[0]]
        while waiting:
            node = waiting.pop()
            if isinstance(node, Node) and node is not product and node not in made:
                made.add(node)
                waiting.extend(_read_by(node))
        tokens = tokens_to_look_at(made, self.given, set(self.texts), lambda node: self.value(node, {}, 2))
        tokens = min(tokens, self.context or tokens)
        heads = math.prod(size for size in product.meta["val"].shape if isinstance(size, int))
        if heads * tokens**2 > MOST_SCORES:
            self.refuse("may see further back than can be looked at", f"a mask to be looked at over {tokens} tokens")
        return tokens

    def value(self, node: Node, stand_in: dict[Node, Tensor], tokens: int) -> Any:
        """The node's value in a text of so many tokens, with `stand_in` for some nodes."""
        inputs = (torch.zeros(1, tokens, dtype=torch.long), torch.arange(tokens)[None])
        values: dict[Node, Any] = {**self.given, **dict(zip(self.texts, inputs, strict=True)), **stand_in}
        waiting = [node]
        while waiting:
            top = waiting[-1]
            missing = [source for source in _read_by(top) if source not in values] if top not in values else []
            if missing:
                waiting.extend(missing)
                continue
            waiting.pop()
            if top not in values:
                values[top] = _run(top, values, tokens, self.widened)
        return values[node]

    def constant(self, value: Tensor, before: Node) -> Node:
        """A new constant of the model, float32; the one that is there if it has the same value."""
        for name, node in self.added.items():
            if torch.equal(self.constants[name], value):
                return node
        name = f"attention_slopes_{len(self.added)}"
        self.constants[name] = value
        self.added[name] = add_constant(self.exported, name, value, before)
        return self.added[name]

    def refuse(self, what: str, got: str, kind: type[ModelError] = ModelError) -> None:
        raise kind(
            f"attention of {self.name} {what}",
            where="attention that the model writes out itself",
            expected="causal attention",
            got=got,
            fix="choose a model of one of the families in docs/models.md",
        )


def _read_by(node: Node) -> list[Node]:
    """The nodes whose values, not only their shapes, go into this one."""
    return [source for source in node.all_input_nodes if str(node.target) not in _OF_A_SHAPE or source is not node.args[0]]


def _is_of_16_bits(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype in _OF_16_BITS


def _holds_tensors(value: object) -> bool:
    """Whether a node's value is a tensor, or the several of a split."""
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(isinstance(part, Tensor) for part in value))


def _run(node: Node, values: dict[Node, Any], tokens: int, widened: bool) -> Any:
    """The node's value; with `widened`, numbers of 16 bits are worked out in float32: positions need more of them."""
    if node.op == "placeholder" or not callable(node.target):
        raise ModelError("a mask of attention depends on weights, or on a constant that is not known", where=node.name)
    if str(node.target) == "aten.sym_size.int" and (size := node.meta.get("val")) is not None and not isinstance(size, int):
        return tokens if str(size).isidentifier() else values[node.args[0]].shape[node.args[1]]  # pyright: ignore
    if str(node.target) in _OF_A_SHAPE:
        like: Any = node.args[0]
        shape = [size if isinstance(size, int) else tokens for size in like.meta["val"].shape]
        values = {**values, like: torch.empty(shape, dtype=like.meta["val"].dtype)}
    arguments = map_arg((node.args, node.kwargs), lambda source: values[source])
    keywords = {key: "cpu" if key == "device" else value for key, value in arguments[1].items()}
    if widened and keywords.get("dtype") in _OF_16_BITS:
        keywords["dtype"] = torch.float32
    try:
        return node.target(*arguments[0], **keywords)
    except (IndexError, RuntimeError) as error:  # a table that is shorter than the text
        raise ModelError(
            f"a mask of attention cannot be worked out for {tokens} tokens", where=node.name, got=str(error).splitlines()[0][:200]
        ) from error


@dataclass(frozen=True)
class _Scores:
    """What is done to scores. `slopes` [heads] is what a key's position is multiplied with, to be added; None: nothing is."""

    scale: float
    window: int
    slopes: Tensor | None = None


def _replace(softmax: Node, known: _Known) -> bool:
    product = _product_of_scores(softmax, known)
    out = _product_of_values(softmax)
    if product is None or out is None:
        return False
    scores = _scores(softmax, product, known)
    heads = [_four_dimensions(node, out) for node in (*product.args[:2], out.args[1])]  # pyright: ignore[reportArgumentType]
    q, k_turned, v = (_without_cast(node, heads[2]) for node in heads)
    k = _call(out, torch.ops.aten.transpose.int, k_turned, 2, 3)
    q, k = (_of_type(node, v, out) for node in (q, k))
    scale = scores.scale
    if scores.slopes is not None:
        slopes = known.constant(scores.slopes, out)
        q, k = with_columns_of_positions(partial(_call, out), (q, k), scale, slopes, known.texts[1])
        scale = 1.0
    attention = torch.ops.tokenspeed.attention.default
    made = _call(out, attention, q, k, v, None, scale, scores.window, 0.0, 0)
    made = _call(out, torch.ops.aten.transpose.int, made, 1, 2)
    if out.meta["val"].ndim == 3:
        made = _call(out, torch.ops.aten.squeeze.dim, made, 0)
    out.replace_all_uses_with(made)
    return True


def _product_of_scores(softmax: Node, known: _Known) -> Node | None:
    """The product of queries and keys that a softmax is taken of."""
    node: Node = softmax.args[0]  # pyright: ignore[reportAssignmentType]
    while str(node.target) not in _PRODUCTS:
        sources = [source for source in node.all_input_nodes if source in known.data]
        if len(sources) != 1 or node.meta["val"].shape[-1] != softmax.meta["val"].shape[-1]:
            return None
        node = sources[0]
    return node if all(source in known.data for source in node.all_input_nodes) else None


def _product_of_values(softmax: Node) -> Node | None:
    """The product of a softmax with values, nothing but casts and views between."""
    node = softmax
    while len(users := [user for user in node.users if not str(user.target).startswith("aten._assert")]) == 1:
        (user,) = users
        if str(user.target) in _PRODUCTS:
            return user if user.args[0] is node else None
        if str(user.target) not in _CASTS_AND_VIEWS:
            return None
        node = user
    return None


def _scores(softmax: Node, product: Node, known: _Known) -> _Scores:
    """What is done to scores, found by doing it to 0, 1 and 2."""
    tokens = known.tokens(softmax, product)
    shape = [size if isinstance(size, int) else tokens for size in product.meta["val"].shape]
    source: Node = softmax.args[0]  # pyright: ignore[reportAssignmentType]
    none, one, two = (known.value(source, {product: torch.full(shape, float(c))}, tokens).float() for c in range(3))
    none, one, two = (made.reshape(-1, tokens, tokens) for made in (none, one, two))
    seen = none > HIDDEN
    window = int(seen[0].sum(-1).max())
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)[None, :]
    if not bool((seen == ((distance >= 0) & (distance < window))).all()):
        known.refuse("does not see all tokens before it, or sees some behind it", "another mask", NotCausal)
    slopes = (one - none)[seen]
    scale = float(slopes[0])
    if not torch.allclose(slopes, slopes[:1]) or not torch.allclose((two - none)[seen], 2 * slopes) or scale <= 0:
        known.refuse("does not only scale its scores", f"factors from {float(slopes.min()):.4g} to {float(slopes.max()):.4g}")
    window = 0 if window == tokens else window
    if not bool((none[seen] != 0).any()):
        return _Scores(scale, window)
    added = slopes_of(none, seen[0])
    if added is None:
        known.refuse(
            "adds something to its scores", "another bias of each pair of tokens than one that grows with their distance"
        )
    return _Scores(scale, window, added)


def _four_dimensions(node: Node, before: Node) -> Node:
    rank = node.meta["val"].ndim
    return _call(before, torch.ops.aten.unsqueeze.default, node, 0) if rank == 3 else node


def _without_cast(node: Node, values: Node) -> Node:
    """What the node is a cast of, if that has the type of the values."""
    source = node.args[0]
    if str(node.target) == "aten._to_copy.default" and isinstance(source, Node):
        return source if source.meta["val"].dtype == values.meta["val"].dtype else node
    return node


def _of_type(node: Node, values: Node, before: Node) -> Node:
    """The node in the type of the values: models take products in a wider one, which attention does by itself."""
    dtype = values.meta["val"].dtype
    return node if node.meta["val"].dtype == dtype else _call(before, torch.ops.aten._to_copy.default, node, dtype=dtype)


def _call(before: Node, target: Any, *arguments: Any, **options: Any) -> Node:
    """A new node in front of `before`, in the same module."""
    with before.graph.inserting_before(before):
        made = before.graph.call_function(target, arguments, options)
    if "nn_module_stack" in before.meta:
        made.meta["nn_module_stack"] = before.meta["nn_module_stack"]
    with before.meta["val"].fake_mode:
        made.meta["val"] = target(*map_arg(arguments, lambda part: part.meta["val"]), **options)
    return made
