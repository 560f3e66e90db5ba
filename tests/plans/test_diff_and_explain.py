"""diff and explain, as data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console, RenderableType
from tokenspeed.plans import diff, explain, inspect
from tokenspeed.plans.reader import Plan
from tokenspeed.tests.plans.sample_plan import sample_decisions, sample_manifest, write_sample_plan


def changes_between(tmp_path: Path, **second: Any) -> list[diff.Change]:
    write_sample_plan(tmp_path / "a.bin")
    write_sample_plan(tmp_path / "b.bin", **second)
    with Plan.open(tmp_path / "a.bin") as before, Plan.open(tmp_path / "b.bin") as after:
        return diff.diff_plans(before, after)


def printed(pages: Iterable[RenderableType]) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        for page in pages:
            console.print(page)
    return capture.get()


def test_the_same_plan_has_no_changes(tmp_path: Path) -> None:
    assert changes_between(tmp_path) == []


def test_a_changed_option_feature_and_memory(tmp_path: Path) -> None:
    manifest = sample_manifest()
    found = changes_between(
        tmp_path,
        provenance=msgspec.structs.replace(manifest.provenance, options={"max-context": "64", "quantize": "int8"}),
        target=msgspec.structs.replace(manifest.target, features=("avx2",)),
        memory=msgspec.structs.replace(manifest.memory, workspace=5),
    )
    assert {(change.where, change.kind) for change in found} == {
        ("provenance.options.max-context", "changed"),
        ("provenance.options.quantize", "added"),
        ("target.features", "changed"),
        ("memory.workspace", "changed"),
    }
    assert "1048576" in printed(diff.pages(found))


def test_changed_decisions_and_entries(tmp_path: Path) -> None:
    first, second = sample_decisions()
    faster = msgspec.structs.replace(second, kernel="flash")
    found = changes_between(tmp_path, entries={"decisions.json": msgspec.json.encode((first, faster)), "ir/new": b"x"})
    assert [(change.section, change.where.rpartition("]")[2] or change.where, change.kind) for change in found] == [
        ("decisions", ".kernel", "changed"),
        ("entries", "decisions.json", "changed"),
        ("entries", "ir/new", "added"),
    ]


def test_digests_and_weights_by_name(tmp_path: Path) -> None:
    sources = tuple(msgspec.structs.replace(source, digest="a" * 64) for source in sample_manifest().sources)
    found = changes_between(tmp_path, sources=sources)
    assert found[0] == diff.Change("sources", "sources[embed.weight].digest", "changed", None, "a" * 64)
    assert len(found) == len(sources)


def test_totals_and_filter() -> None:
    decisions = sample_decisions()
    data = explain.explanation(decisions)
    assert [item["step_seconds"] for item in data["decisions"]] == pytest.approx([2e-5, 4e-5])
    (total,) = data["totals"]
    assert total["seconds"] == pytest.approx(6e-5) and total["operations"] == 4
    assert total["share_by_bound"] == pytest.approx({"bandwidth": 1 / 3, "compute": 2 / 3, "dispatch": 0})
    assert [item.operation for item in explain.select(decisions, "TILED")] == ["attention"]
    assert explain.explanation(decisions, "nothing")["decisions"] == []
    assert "least predicted time" in printed(explain.pages(decisions))


def test_inspect_reads_like_a_page(tmp_path: Path) -> None:
    write_sample_plan(tmp_path / "plan.bin")
    with Plan.open(tmp_path / "plan.bin") as plan:
        data = inspect.summary(plan)
        text = printed(inspect.pages(data))
    assert data["memory"]["total"] == plan.manifest.memory.total
    assert data["programs"][0]["instructions"] == 8
    for expected in (plan.plan_id, "sample-model for cpu-avx2", "avx2 fma", "32 blocks of 16 tokens", "not bound"):
        assert expected in text


def test_a_plans_strings_do_not_steer_the_terminal(tmp_path: Path) -> None:
    model = msgspec.structs.replace(sample_manifest().model, name="\x1b[31mred[bold]")
    write_sample_plan(tmp_path / "plan.bin", model=model)
    with Plan.open(tmp_path / "plan.bin") as plan:
        text = printed(inspect.pages(inspect.summary(plan)))
    assert "\x1b" not in text and r"\x1b[31mred[bold]" in text
