"""Attention on keys and values that are stored already reads their cache."""

from __future__ import annotations

from tokenspeed.ir import module
from tokenspeed.passes.share_kv_caches import share_kv_caches

KIND = "tensor<?x2x4xf32>"


def attention(name: str, q: str, layer: int, window: int) -> str:
    attributes = f'layer = "{layer}", scale = 1.0 : f64, window = {window} : i64, softcap = 0.0 : f64'
    sizes = "operandSegmentSizes = array<i32: 1, 1, 1, 0>"
    return f'%{name} = "ts.attention"({q}, %k, %v) {{{attributes}, {sizes}}} : ({KIND}, {KIND}, {KIND}) -> {KIND}'


def shared(*windows: int) -> list[tuple[str, str]]:
    """Operations, with the layer of their cache, that attentions with these windows on the same keys become."""
    text = f"func.func @step() -> {KIND} {{\n"
    text += '%ids = "ts.input"() {sym = "token_ids"} : () -> tensor<?xi32>\n'
    text += '%w = "ts.weight"() {parameters = ["w"], sym = "w"} : () -> tensor<8x8xf32>\n'
    text += '%x = "ts.embedding"(%ids, %w) : (tensor<?xi32>, tensor<8x8xf32>) -> tensor<?x8xf32>\n'
    text += f'%xs = "ts.reshape"(%x) : (tensor<?x8xf32>) -> {KIND}\n'
    for name, factor in (("k", 2.0), ("v", 3.0)):
        text += f'%{name} = "ts.scale"(%xs) {{factor = {factor} : f64}} : ({KIND}) -> {KIND}\n'
    names = ["xs"]
    for layer, window in enumerate(windows):
        text += attention(f"a{layer}", f"%{names[-1]}", layer, window) + "\n"
        names.append(f"a{layer}")
    text += f"return %{names[-1]} : {KIND}\n}}"
    parsed = share_kv_caches(module.parse(text))
    module.verify(parsed)
    found = [item for item in module.walk(module.step_block(parsed)) if "attention" in item.name]
    return [(item.name, module.text_attribute(item, "layer")) for item in found]


def test_later_attention_reads_the_first_ones_cache() -> None:
    assert shared(0, 0, 0) == [("ts.attention", "0"), ("ts.cached_attention", "0"), ("ts.cached_attention", "0")]


def test_a_cache_is_not_read_with_another_window() -> None:
    assert shared(4, 0, 4, 0) == [
        ("ts.attention", "0"),
        ("ts.attention", "1"),
        ("ts.cached_attention", "0"),
        ("ts.cached_attention", "1"),
    ]
