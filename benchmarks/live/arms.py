"""One server of several that play the same traffic: its policy, and its tier in host memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import Manifest
from tokenspeed.plans.units import format_bytes, parse_bytes
from tokenspeed.plans.writer import write_plan
from tokenspeed.runtime.scheduling.ablation import POLICIES, without
from tokenspeed.runtime.scheduling.policy import AGENTIC, Policy
from tokenspeed.runtime.simulation.simulate import with_host_tier


@dataclass(frozen=True)
class Arm:
    """`name`: a policy, or the feature that the default one goes without. `host_kv`: bytes of the tier, None for the plan's."""

    name: str
    host_kv: int | None = None

    @classmethod
    def parse(cls, text: str) -> Arm:
        """NAME or NAME@BYTES. Raises UsageError for a feature that there is not, and for bytes that are none."""
        name, at, size = text.partition("@")
        found = cls(name, parse_bytes(size, "--arm") if at else None)
        found.policy()
        return found

    def policy(self) -> Policy:
        return POLICIES[self.name] if self.name in POLICIES else without(AGENTIC, [self.name])

    @property
    def words(self) -> tuple[str, ...]:
        """Options of tokenspeed-run."""
        return ("--policy", self.name) if self.name in POLICIES else ("--without", self.name)

    @property
    def label(self) -> str:
        policy = self.name if self.name in POLICIES else f"without {self.name}"
        if self.host_kv is None:
            return policy
        return f"{policy}, host tier of {format_bytes(self.host_kv)}" if self.host_kv else f"{policy}, no host tier"


def manifest_of(arm: Arm, manifest: Manifest) -> Manifest:
    """The plan with the arm's tier. Raises UsageError when nothing fits."""
    return manifest if arm.host_kv is None else with_host_tier(manifest, arm.host_kv)


def plan_of(arm: Arm, path: Path, folder: Path) -> Path:
    """The plan itself, or a copy with the arm's tier in `folder`: nothing else of a plan says how large the tier is."""
    with Plan.open(path) as plan:
        given, wanted = plan.manifest, manifest_of(arm, plan.manifest)
        if wanted == given:
            return path
        found = folder / f"{path.stem}.{arm.host_kv}.bin"
        write_plan(found, wanted, {entry.name: plan.entry(entry.name) for entry in given.entries})
    return found


def with_pool(manifest: Manifest, tokens: int) -> Manifest:
    """The plan as if the device's pool held so many tokens, and the tier as many as before."""
    blocks = max(1, tokens // manifest.kv.block_tokens)
    return msgspec.structs.replace(manifest, kv=msgspec.structs.replace(manifest.kv, blocks=blocks))
