"""What a plan holds, on one page: `summary` as data, `pages` as rich tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from .host_tier import host_tier
from .kv_caches import state_bytes
from .mesh import groups_of
from .program import Repeat
from .reader import Plan
from .schema import Manifest
from .tables import shown
from .units import format_bytes, format_count, format_seconds

Summary = dict[str, Any]


def summary(plan: Plan) -> Summary:
    """The page as plain data. Reads the program entries (for their buckets) and nothing else beyond the manifest."""
    manifest = plan.manifest
    return {
        "plan_id": plan.plan_id,
        "path": str(plan.path),
        "format": f"{manifest.format[0]}.{manifest.format[1]}",
        "minimum_runtime": manifest.minimum_runtime,
        "file_bytes": plan.path.stat().st_size,
        "model": _fields(manifest.model),
        "target": _fields(manifest.target) | {"mesh": {axis.name: axis.size for axis in manifest.mesh}},
        "memory": _fields(manifest.memory) | {"total": manifest.memory.total},
        "kv": _kv(manifest),
        "schedule": _fields(manifest.schedule),
        "programs": [_program(plan, reference.name) for reference in manifest.programs],
        "weights": _weights(manifest),
        "performance": _performance(manifest),
        "tokenizer": None if manifest.tokenizer is None else _fields(manifest.tokenizer),
        "goldens": [_fields(golden) for golden in manifest.goldens],
        "provenance": _fields(manifest.provenance),
        "entries": {entry.name: entry.size for entry in manifest.entries},
    }


def pages(data: Summary) -> Iterator[RenderableType]:
    """The summary as rich tables, in reading order."""
    model, target = data["model"], data["target"]
    mesh = " x ".join(f"{name} {size}" for name, size in target["mesh"].items()) or "one rank"
    yield _pairs(
        f"{model['name']} for {target['name']}",
        {
            "plan": data["plan_id"],
            "file": f"{data['path']}, {format_bytes(data['file_bytes'])}",
            "format": f"{data['format']}, for runtime {data['minimum_runtime']} or newer",
            "model": f"{model['architecture']} ({model['model_type']}), {model['dtype']}",
            "parameters": format_count(model["parameters"]),
            "shape": f"{model['layers']} layers, hidden {model['hidden_size']}, vocabulary {model['vocabulary']}",
            "context": f"{model['max_context']} tokens",
            "target": f"{target['kind']}, {mesh}, rows {target['row_padding']}",
            "features": " ".join(target["features"]) or "none needed",
            "weights": _weights_line(data["weights"]),
            "tokenizer": "included" if data["tokenizer"] else "none",
        },
    )
    yield _memory_table(data["memory"])
    yield _kv_table(data["kv"])
    limits = "Schedule, of each group of ranks" if data["kv"]["pools"] > 1 else "Schedule"
    yield _pairs(limits, {name: _plain(value) for name, value in data["schedule"].items()})
    yield _program_table(data["programs"])
    yield _pairs(
        "Predictions for this traffic",
        {name: _prediction(name, value) for name, value in data["performance"]["predictions"].items()},
    )
    yield _rates_table(data["performance"]["rates"])
    yield _pairs("Goldens", {golden["name"]: f"{golden['weights']} weights" for golden in data["goldens"]} or {"none": ""})
    yield _pairs("Provenance", _provenance(data["provenance"]))


def _fields(part: Any) -> dict[str, Any]:
    return {name: getattr(part, name) for name in part.__struct_fields__}


def _kv(manifest: Manifest) -> dict[str, Any]:
    kv, tier = manifest.kv, host_tier(manifest)
    return _fields(kv) | {
        "groups": [_fields(group) for group in kv.groups],
        "windows": [_fields(pool) for pool in kv.windows],
        "states": [_fields(group) | {"bytes": state_bytes(group)} for group in kv.states],
        "shares_prefixes": kv.shares_prefixes,
        "prefix_reuse": kv.prefix_reuse,
        "tokens": kv.blocks * kv.block_tokens,
        "pools": groups_of(manifest.mesh),
        "host_tier": None if tier is None else tier.data() | {"text": tier.text},
    }


def _program(plan: Plan, name: str) -> dict[str, Any]:
    program = plan.program(name)
    reference = next(item for item in plan.manifest.programs if item.name == name)
    buckets = [{"rows": item.rows, "logit_rows": item.logit_rows, "arena_bytes": item.arena_bytes} for item in program.buckets]
    instructions = sum(item.count * len(item.body) if isinstance(item, Repeat) else 1 for item in program.body)
    return _fields(reference) | {"instructions": instructions, "buckets": buckets}


def _weights(manifest: Manifest) -> dict[str, Any]:
    instances = [(weight, len(weight.layers) or 1) for weight in manifest.weights]
    by_dtype = Counter[str]()
    for weight, count in instances:
        by_dtype[weight.dtype] += weight.bytes * count
    return {
        "count": sum(count for _, count in instances),
        "bytes_by_dtype": dict(sorted(by_dtype.items())),
        "sources": len(manifest.sources),
        "source_bytes": sum(source.bytes for source in manifest.sources),
        "source_encodings": dict(sorted(Counter(source.encoding for source in manifest.sources).items())),
        "bound": bool(manifest.sources) and all(source.digest is not None for source in manifest.sources),
        "bundled": bool(manifest.sources) and all(source.entry is not None for source in manifest.sources),
    }


def _performance(manifest: Manifest) -> dict[str, Any]:
    performance = manifest.performance
    return {
        "predictions": dict(performance.predictions),
        "rates": {name: _fields(rate) for name, rate in performance.rates.items()},
    }


def _weights_line(weights: dict[str, Any]) -> str:
    dtypes = ", ".join(f"{dtype} {format_bytes(size)}" for dtype, size in weights["bytes_by_dtype"].items())
    state = "bundled" if weights["bundled"] else "bound by digest" if weights["bound"] else "not bound (tokenspeed-plan bind)"
    return f"{weights['count']} ({dtypes}) from {weights['sources']} tensors of {format_bytes(weights['source_bytes'])}, {state}"


def _pairs(title: str, values: dict[str, str]) -> Table:
    table = Table(title=shown(title), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in values.items():
        table.add_row(f"[dim]{shown(name)}[/dim]", shown(value))
    return table


def _memory_table(memory: dict[str, int]) -> Table:
    table = Table("purpose", "bytes", "", title="Device memory", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.columns[1].justify = "right"
    for name, size in memory.items():
        table.add_row(name, f"{size:,}", format_bytes(size), style="bold" if name == "total" else "")
    return table


def _kv_table(kv: dict[str, Any]) -> Table:
    every = f", in each of {kv['pools']} groups of ranks" if kv["pools"] > 1 else ""
    values = {
        "pool": f"{kv['blocks']} blocks of {kv['block_tokens']} tokens = {kv['tokens']:,} tokens{every}",
        "block": format_bytes(kv["bytes_per_block"]),
        "host tier": kv["host_tier"]["text"] if kv["host_tier"] else "none (tokenspeed-compile --host-kv)",
        **{
            f"pool {number}": f"{pool['blocks']} blocks of {format_bytes(pool['bytes_per_block'])}, kept for the last"
            f" {pool['window']} tokens of a sequence"
            for number, pool in enumerate(kv["windows"], 1)
        },
        "prefix identity": f"{kv['identity_tokens']} tokens, compatibility {kv['compatibility']}",
    }
    for group in kv["groups"]:
        window = f", window {group['window']}" if group["window"] else ""
        values[group["name"]] = (
            f"{len(group['layers'])} layers, {group['heads']} heads of {group['head_dim']}, {group['dtype']}{window}"
            f", {group['block_order'].replace('_', '-')}"
        )
    for group in kv["states"]:
        shapes = ", ".join(f"{dtype} {list(shape)}" for shape, dtype in zip(group["shapes"], group["dtypes"], strict=True))
        values[group["name"]] = (
            f"{len(group['layers'])} recurrent layers of {shapes}, {group['slots']} slots, {format_bytes(group['bytes'])}"
        )
    if not kv["shares_prefixes"]:
        values["prefix reuse"] = kv["prefix_reuse"]
    return _pairs("KV cache", values)


def _program_table(programs: list[dict[str, Any]]) -> Table:
    table = Table(
        "program", "role", "rank", "instructions", "buckets (rows: arena)", title="Programs", title_justify="left", box=None
    )
    for program in programs:
        buckets = ", ".join(f"{bucket['rows']}: {format_bytes(bucket['arena_bytes'])}" for bucket in program["buckets"])
        table.add_row(shown(program["name"]), program["role"], str(program["rank"]), str(program["instructions"]), buckets)
    return table


def _rates_table(rates: dict[str, dict[str, Any]]) -> Table:
    table = Table("rate", "value", "unit", "basis", "source", title="Rates", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, rate in rates.items():
        table.add_row(shown(name), f"{rate['value']:.4g}", shown(rate["unit"]), rate["basis"], shown(rate["source"]))
    return table


def _provenance(provenance: dict[str, Any]) -> dict[str, str]:
    values = {"compiler": f"{provenance['compiler_version']} ({provenance['compiler_digest']})"}
    for group in ("inputs", "options", "libraries", "plugins"):
        values |= {f"{group}: {name}": value for name, value in provenance[group].items()}
    return values


def _prediction(name: str, value: float) -> str:
    return format_seconds(value) if name.endswith("_seconds") else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:g}" for name, number in value.items())
    return str(value)
