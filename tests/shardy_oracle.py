"""What XLA's Shardy makes of dense blocks over four devices: a program of its own, since devices are set up once a process.

Prints, by block, how often each collective stands in what the partitioner made.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

RANKS, ROWS, HIDDEN, HEADS, INNER, VOCABULARY = 4, 16, 32, 4, 48, 64

Weights = dict[str, jax.Array]


def spec(*axes: str | None) -> NamedSharding:
    return NamedSharding(MESH, PartitionSpec(*axes))


MESH = Mesh(np.array(jax.devices()), ("tp",))
OUT, IN, WHOLE = ("tp", None), (None, "tp"), (None, None)
"""Of weights [out, in], as ts.linear has them."""

PINS = {"gate": OUT, "up": OUT, "down": IN, "q": OUT, "k": OUT, "v": OUT, "o": IN, "head": OUT}


def weights() -> Weights:
    shapes = dict.fromkeys("qkvo", (HIDDEN, HIDDEN)) | {"head": (VOCABULARY, HIDDEN)}
    shapes |= {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
    return {name: jnp.ones(shape) for name, shape in shapes.items()}


def norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)


def mlp(x: jax.Array, w: Weights) -> jax.Array:
    return (jax.nn.silu(x @ w["gate"].T) * (x @ w["up"].T)) @ w["down"].T


def attention(x: jax.Array, w: Weights) -> jax.Array:
    q, k, v = ((x @ w[name].T).reshape(ROWS, HEADS, -1) for name in "qkv")
    scores = jnp.where(jnp.tril(jnp.ones((ROWS, ROWS), bool)), jnp.einsum("qhd,khd->hqk", q, k), -jnp.inf)
    return jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores), v).reshape(ROWS, HIDDEN) @ w["o"].T


def layer(x: jax.Array, w: Weights) -> jax.Array:
    x = x + attention(norm(x), w)
    return x + mlp(norm(x), w)


def layer_of_rows(x: jax.Array, w: Weights) -> jax.Array:
    """Each rank has some rows of the residual stream, and does their norms."""

    def rows(value: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(value, spec("tp", None))

    def every(value: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(value, spec(None, None))

    x = rows(x)
    x = rows(x + rows(attention(every(rows(norm(x))), w)))
    return rows(x + rows(mlp(every(rows(norm(x))), w)))


def head(x: jax.Array, w: Weights) -> jax.Array:
    return x @ w["head"].T


BLOCKS: dict[str, Callable[[jax.Array, Weights], jax.Array]] = {
    "mlp": mlp,
    "attention": attention,
    "layer": layer,
    "layer of rows": layer_of_rows,
    "head": head,
}


def collectives(text: str) -> dict[str, int]:
    """Of a partitioned module. This backend says a reduce-scatter as an all-reduce of which each rank takes its part."""
    found = {"all_reduce": 0, "all_gather": 0, "reduce_scatter": 0}
    for name, kind in re.findall(r"%?([\w.-]+) = \S+ (all-reduce|all-gather|reduce-scatter)(?:-start)?\(", text):
        readers = re.findall(rf"= \S+ ([\w-]+)\([^\n]*%?{re.escape(name)}[,)]", text)
        scattered = kind == "all-reduce" and bool(readers) and all(_takes_a_part(reader, name, text) for reader in readers)
        found["reduce_scatter" if scattered else kind.replace("-", "_")] += 1
    return found


def _takes_a_part(reader: str, name: str, text: str) -> bool:
    if reader == "dynamic-slice":
        return True
    called = re.search(rf"fusion\([^\n]*%?{re.escape(name)}[,)][^\n]*calls=%?([\w.-]+)", text)
    if reader != "fusion" or called is None:
        return False
    body = re.search(rf"^%?{re.escape(called.group(1))} [^\n]*\{{\n(.*?)^\}}", text, re.M | re.S)
    return body is not None and "dynamic-slice" in body.group(1)


def main() -> None:
    made = weights()
    placed = {name: spec(*PINS[name]) for name in made}
    found = {}
    for name, block in BLOCKS.items():
        out = spec("tp", None) if block is layer_of_rows else spec(None, None)
        compiled = jax.jit(block, in_shardings=(spec(None, None), placed), out_shardings=out)
        text = compiled.lower(jnp.ones((ROWS, HIDDEN)), made).compile().as_text() or ""
        found[name] = collectives(text)
        if os.environ.get("SHOW"):
            print(text)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
