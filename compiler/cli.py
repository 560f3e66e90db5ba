"""tokenspeed-compile: a model in, one plan file out."""

from __future__ import annotations

import json
import resource
import sys
import time
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from rich.console import Console

from ..plans.command import run_command
from ..plans.errors import UsageError
from ..plans.units import format_bytes, parse_bytes, printable
from .mesh import AXES

if TYPE_CHECKING:
    from .pipeline import Compilation

PHASES = ("import", "raise", "partition", "fuse", "quantize", "select", "split", "codegen", "allocate", "emit")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default=Path("plan.bin"), show_default=True)
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    help="Target machine, e.g. h200 or h200:8; `cpu` is this host's instruction set.",
)
@click.option(
    "--parallel",
    default="auto",
    show_default=True,
    help="Layout over several devices: auto, or axes with sizes, e.g. tp=4. "
    + "; ".join(f"{axis.name} is {axis.meaning}" for axis in AXES if axis.works)
    + ".",
)
@click.option(
    "--placement",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="How weights lie (TOML); the rest is searched.",
)
@click.option("--dtype", type=click.Choice(["auto", "f32", "bf16", "f16"]), default="auto", show_default=True)
@click.option(
    "--quantize",
    type=click.Choice(["auto", "none", "int8", "int4", "f8e4m3"]),
    default="auto",
    show_default=True,
    help="Type that matrices are stored in; auto keeps those of a quantised checkpoint as they are.",
)
@click.option(
    "--kv-dtype",
    type=click.Choice(["auto", "f8e4m3"]),
    default="auto",
    show_default=True,
    help="Type that keys and values are kept in, on accelerators; auto is the model's.",
)
@click.option(
    "--kernels",
    type=click.Choice(["auto", "library"]),
    default="auto",
    show_default=True,
    help="library: torch's alone, no native kernels in the plan.",
)
@click.option(
    "--collectives",
    type=click.Choice(["auto", "library"]),
    default="auto",
    show_default=True,
    help="library: the vendor's alone, for devices that do not reach each other's memory.",
)
@click.option(
    "--overlap",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Layers in two halves of a prompt's rows, one computing while sums of the other travel between ranks.",
)
@click.option(
    "--window-pools/--no-window-pools",
    default=True,
    show_default=True,
    help="Layers that see a window of tokens free KV blocks that are behind it; not together with --host-kv.",
)
@click.option("--max-context", type=int, help="Longest sequence in tokens.  [default: the model's, at most 8192]")
@click.option("--memory", help="Device memory the plan may use, e.g. 8GiB, by default all of it; the KV pool takes what is left.")
@click.option(
    "--host-kv",
    default="0",
    show_default=True,
    help="Host memory of each rank for keys and values that no sequence uses now, e.g. 64GiB; page-locked for accelerators.",
)
@click.option("--max-sequences", type=click.IntRange(1, 1024), help="Requests running at once.  [default: 16; accelerators: 64]")
@click.option(
    "--prefill-chunk", type=click.IntRange(1, 65536), help="Prompt tokens per step.  [default: 512; accelerators: 2048]"
)
@click.option("--traffic", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Traffic profile (JSON).")
@click.option("--bundle-weights", is_flag=True, help="Put the weights into the plan.")
@click.option("--stop-after", type=click.Choice(PHASES), help="Print the IR after this phase and stop.")
@click.option("--dump-ir", type=click.Path(path_type=Path, file_okay=False), help="Write the IR after each phase here.")
@click.option("--list-targets", is_flag=True, help="Print the targets and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print a machine-readable summary.")
@click.version_option(package_name="tokenspeed-compile")
@run_command
def main(
    model: Path | None,
    output: Path,
    memory: str | None,
    host_kv: str,
    traffic: Path | None,
    placement: Path | None,
    stop_after: str | None,
    dump_ir: Path | None,
    list_targets: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compile MODEL (a Hugging Face directory, a GGUF file, or a bare config.json) into one plan file."""
    if list_targets:
        _print_targets(as_json)
        return
    if model is None:
        raise UsageError("no model was given", where="command line", expected="MODEL", fix="tokenspeed-compile path/to/model")
    from .options import CompileOptions
    from .placement_file import read_placement

    _warn_of_plugins()
    pins = read_placement(placement) if placement else ()
    limit = parse_bytes(memory, "--memory") if memory else None
    chosen = CompileOptions(
        memory=limit, host_kv=parse_bytes(host_kv, "--host-kv"), traffic=_traffic(traffic), placement=pins, **options
    )
    started = time.perf_counter()
    state, seconds = _compile(model, chosen, stop_after, dump_ir)
    if stop_after and stop_after != "emit":
        click.echo(_after(state, stop_after))
        return
    from ..plans.writer import write_plan

    assert state.manifest is not None
    plan_id = write_plan(output, state.manifest, state.entries)
    seconds["write"] = time.perf_counter() - started - sum(seconds.values())
    _report(state, output, plan_id, seconds, as_json)


def _traffic(path: Path | None) -> Any:
    from ..passes.schedule import TrafficProfile

    if path is None:
        return TrafficProfile()
    try:
        return msgspec.json.decode(path.read_bytes(), type=TrafficProfile)
    except msgspec.DecodeError as error:
        names = ", ".join(field.name for field in fields(TrafficProfile))
        raise UsageError(
            "this is not a traffic profile", where=str(path), expected=f"a JSON object with {names}", got=str(error)
        ) from error


def _compile(model: Path, options: Any, stop_after: str | None, dump_ir: Path | None) -> tuple[Compilation, dict[str, float]]:
    console = Console(stderr=True)
    quiet = not sys.stderr.isatty()
    seconds: dict[str, float] = {}
    with nullcontext() if quiet else console.status("loading the compiler") as status:
        last = time.perf_counter()

        def mark(phase: str) -> None:
            nonlocal last
            now = time.perf_counter()
            seconds[phase] = now - last
            last = now
            if status is not None:
                following = PHASES[PHASES.index(phase) + 1 :] if phase in PHASES else PHASES
                status.update(f"{following[0] if following else 'writing'} (after {phase}: {seconds[phase]:.1f} s)")

        from ..ir.module import context
        from .frontends.source import open_model
        from .pipeline import compile_model, text_of

        mark("load")
        source = open_model(model)
        mark("open")

        def observe(phase: str, state: Compilation) -> None:
            mark(phase)
            if dump_ir is not None:
                dump_ir.mkdir(parents=True, exist_ok=True)
                (dump_ir / f"{PHASES.index(phase) + 1:02}-{phase}.mlir").write_text(text_of(state))

        with context():
            state = compile_model(source, options, observe, stop_after or "emit")
            state.ir_texts.setdefault(stop_after or "emit", text_of(state))
    for note in source.notes:
        click.echo(f"note: {note}", err=True)
    return state, seconds


def _after(state: Compilation, phase: str) -> str:
    """IR while there is IR; the step programs once instructions exist."""
    if phase in {"codegen", "allocate"}:
        return "\n".join(msgspec.json.format(msgspec.json.encode(step), indent=2).decode() for step in state.steps)
    return state.ir_texts[phase]


def _report(state: Compilation, output: Path, plan_id: str, seconds: dict[str, float], as_json: bool) -> None:
    assert state.manifest is not None
    manifest = state.manifest
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if as_json:
        summary = {
            "plan": str(output),
            "plan_id": plan_id,
            "bytes": output.stat().st_size,
            "target": manifest.target.name,
            "dtype": manifest.model.dtype,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "total_seconds": round(sum(seconds.values()), 3),
            "peak_memory_bytes": peak,
            "memory_bytes": manifest.memory.total,
            "predictions": manifest.performance.predictions,
        }
        click.echo(json.dumps(summary))
        return
    slowest = sorted(seconds, key=lambda name: -seconds[name])[:3]
    size = format_bytes(output.stat().st_size)
    click.echo(f"{output}: {manifest.model.name} for {manifest.target.name}, {manifest.model.dtype}, {size}")
    click.echo(
        f"compiled in {sum(seconds.values()):.1f} s ({', '.join(f'{name} {seconds[name]:.1f}' for name in slowest)}), "
        f"peak memory {format_bytes(peak)}"
    )
    click.echo(f"needs {format_bytes(manifest.memory.total)} on the device; next: tokenspeed-run {output}")


def _print_targets(as_json: bool) -> None:
    from ..targets.registry import all_targets
    from .target_list import print_targets, target_data

    targets = all_targets()
    _warn_of_plugins()
    if as_json:
        click.echo(json.dumps([target_data(machine) for machine in targets.values()]))
    else:
        print_targets(targets, Console())


def _warn_of_plugins() -> None:
    """On stderr, why each plugin that cannot be used is not."""
    from ..targets.registry import plugins

    for error in plugins().refused:
        click.echo(printable(f"warning: {error}"), err=True)


if __name__ == "__main__":
    main()
