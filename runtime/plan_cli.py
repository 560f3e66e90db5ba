"""tokenspeed-plan: looks at plans, checks them, compares them, binds weights to them, signs them. Starts without torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ..plans.command import run_command
from ..plans.integrity import ranks
from ..plans.reader import Plan
from ..plans.weight_layout import WEIGHT_BLOCKS
from .openmp import bound_spinning
from .simulation.command import simulate

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..plans.signing import TrustStore

GOLDENS_FAILED = DIFFERENT = 1
PAGE_WIDTH = 160

_plan_argument = click.argument("plan", type=click.Path(path_type=Path))
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; errors are JSON too.")
_output_option = click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The plan to write.")
_key_option = click.option("--key", required=True, type=click.Path(path_type=Path), help="Private key file (PEM).")


@click.group()
def main() -> None:
    """Look at plan files, check them, compare them, play traffic against them, bind weights to them, sign them."""


main.add_command(simulate)


@main.command()
@_plan_argument
@_json_option
@run_command
def inspect(plan: Path, as_json: bool) -> None:
    """Show what a plan holds: model, target, memory, buckets, KV cache, predictions, provenance."""
    from ..plans.inspect import pages, summary

    with Plan.open(plan) as opened:
        data = summary(opened)
    _print_json(data) if as_json else _print_pages(pages(data))


@main.command()
@_plan_argument
@click.option("--weights", help="Weights for goldens that need a checkpoint: a path, or `dummy` for counter-based ones.")
@click.option("--no-replay", is_flag=True, help="Check digests and signature only; do not run the goldens.")
@click.option("--trust-store", type=click.Path(path_type=Path), help="Public key, or folder of them, the plan must be signed by.")
@click.option("--require-signature", is_flag=True, help="Refuse to go on without a trust store.")
@_json_option
@run_command
def verify(
    plan: Path, weights: str | None, no_replay: bool, trust_store: Path | None, require_signature: bool, as_json: bool
) -> None:
    """Check every byte of a plan, replay its goldens on this machine, and say what rounded weights cost."""
    with Plan.open(plan, trust=_trust(trust_store), require_signature=require_signature) as opened:
        say = _quiet if as_json else click.echo
        opened.verify_all()
        say(f"plan {opened.plan_id}: {len(opened.manifest.entries)} entries sound")
        results = [] if no_replay else _replay(opened, weights, say)
        passed = all(result["passed"] for result in results)
        accuracy = None if no_replay else _accuracy(opened, weights, say)
        if as_json:
            entries = len(opened.manifest.entries)
            found = {"plan_id": opened.plan_id, "entries": entries, "goldens": results, "passed": passed}
            _print_json(found | ({"accuracy": accuracy} if accuracy is not None else {}))
    if not passed:
        sys.exit(GOLDENS_FAILED)


@main.command()
@_plan_argument
@click.option("--operation", help="Only operations, labels or kernels that contain this text.")
@_json_option
@run_command
def explain(plan: Path, operation: str | None, as_json: bool) -> None:
    """Show, for each operation: its kernel, why, the runner-up, the predicted time and the roofline share.

    Of a plan for several ranks also how each operation lies on the mesh, which meshes were weighed, and the stages of a pipeline
    with what each takes. Says too whether equal prefixes are computed once, and why not, and
    what a tier of KV blocks in host memory should buy.
    """
    from ..plans.explain import candidates, explanation, layout, pages, select_placements
    from ..plans.explain_stages import stage_table, stages
    from ..plans.host_tier import host_tier

    with Plan.open(plan) as opened:
        decisions, placements, kv = opened.decisions(), opened.placements(), opened.manifest.kv
        meshes, pipeline, tier = opened.meshes(), stages(opened.manifest), host_tier(opened.manifest)
    if as_json:
        chosen = msgspec.to_builtins(select_placements(placements, operation))
        more = {"placements": chosen, "meshes": msgspec.to_builtins(meshes), "stages": pipeline, "prefix_reuse": kv.prefix_reuse}
        more["host_tier"] = None if tier is None else tier.data()
        _print_json(explanation(decisions, operation) | more)
    elif decisions:
        weighed = [candidates(meshes)] if meshes and not operation else []
        weighed += [stage_table(pipeline)] if pipeline and not operation else []
        _print_pages([*weighed, *pages(decisions, operation), *([layout(placements, operation)] if placements else [])])
    else:
        click.echo("The plan records no decisions.")
    if not as_json:
        click.echo(f"Prefix reuse: {kv.prefix_reuse}")
        click.echo(f"Host tier: {'none' if tier is None else tier.text}")


@main.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@_json_option
@run_command
def diff(first: Path, second: Path, as_json: bool) -> None:
    """Show what changed from one plan to another. Exit code 1 if anything did."""
    from ..plans.diff import diff_plans, pages

    with Plan.open(first) as before, Plan.open(second) as after:
        changes = diff_plans(before, after)
    if as_json:
        _print_json(changes)
    elif changes:
        _print_pages(pages(changes))
    else:
        click.echo("The plans are the same.")
    if changes:
        sys.stdout.flush()
        sys.exit(DIFFERENT)


@main.command()
@_plan_argument
@click.option("--weights", required=True, type=click.Path(path_type=Path), help="Model folder, safetensors or GGUF file.")
@_output_option
@_json_option
@run_command
def bind(plan: Path, weights: Path, output: Path, as_json: bool) -> None:
    """Write the plan with the digests of these weights, so that it runs with no others."""
    from ..plans.bind import bind_plan
    from ..plans.checkpoint import open_checkpoint

    with Plan.open(plan) as opened:
        plan_id = bind_plan(opened, open_checkpoint(weights), output)
    _print_json({"plan_id": plan_id, "path": str(output)}) if as_json else click.echo(f"{output}: plan {plan_id}")


@main.command()
@_plan_argument
@_key_option
@run_command
def sign(plan: Path, key: Path) -> None:
    """Check every byte of a plan and sign it; the signature goes to PLAN.sig."""
    from ..plans import signing

    private = signing.load_private_key(key)
    with Plan.open(plan) as opened:
        opened.verify_all()
        path = signing.write_signature(plan, signing.sign(opened.manifest_bytes, private))
    click.echo(f"{path}: signed by key {signing.key_id(private.public_key().public_bytes_raw())}")


@main.command()
@_key_option
@run_command
def keygen(key: Path) -> None:
    """Make a signing key: the private key in FILE (keep it), the public one in FILE.pub (give it to those who run your plans)."""
    from ..plans.signing import generate_key

    public = generate_key(key)
    click.echo(f"private key: {key}\npublic key:  {public}")


def _replay(plan: Plan, weights: str | None, say: Any) -> list[dict[str, Any]]:
    if not plan.manifest.goldens:
        say("the plan has no goldens")
        return []
    if ranks(plan.manifest) > 1:
        say("goldens of several ranks are replayed by tokenspeed-run PLAN --verify")
        return []
    bound_spinning()  # before torch is loaded
    from .goldens import replay_goldens
    from .host import check_host

    check_host(plan.manifest)
    results = replay_goldens(plan, weights, say)
    for item in results:
        word = "passed" if item.passed else "FAILED"
        say(f"golden {item.name}: {word}, error {item.max_error:.3g}, tolerance {item.tolerance:.3g}")
    return [
        {"name": item.name, "passed": item.passed, "max_error": item.max_error, "tolerance": item.tolerance} for item in results
    ]


def _accuracy(plan: Plan, weights: str | None, say: Any) -> Any:
    """What rounded weights cost; None for a plan that has none, whose own weights are not at hand, or whose code (an
    accelerator's) reads no others."""
    if plan.manifest.device is not None:
        return None
    at_hand = weights is not None or all(source.entry is not None for source in plan.manifest.sources)
    if not at_hand or not any(weight.dtype in WEIGHT_BLOCKS for weight in plan.manifest.weights):
        return None
    from .accuracy import measure_accuracy

    found = measure_accuracy(plan, weights, _quiet)
    for line in found.lines():
        say(line)
    return found


def _trust(path: Path | None) -> TrustStore | None:
    if path is None:
        return None
    from ..plans.signing import TrustStore

    return TrustStore.open(path)


def _quiet(_: str) -> None:
    """Where progress goes when only JSON may be printed."""


def _print_json(data: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(data), indent=2).decode())


def _print_pages(pages: Iterable[RenderableType]) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else PAGE_WIDTH)
    with console.capture() as capture:  # printed at once: rich would end the process itself when a pipe breaks
        for page in pages:
            console.print(page)
            console.print()
    click.echo(capture.get(), nl=False)
