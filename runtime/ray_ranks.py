"""All ranks of a plan on a Ray cluster: placed by the plan's mesh, started, watched, and ended as one."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..plans.errors import UsageError
from ..plans.schema import Manifest
from .launcher import HOST_RANKS
from .rank_watch import RanksLost
from .ray_placement import CORE, DEVICE, rank_groups
from .ray_rank import RankActor

_PLACING_SECONDS = 120.0
_ACTOR_SECONDS = 60.0
_POLL_SECONDS = 0.2
_LAST_WORDS_SECONDS = 5.0
_ENDING_SECONDS = 15.0


class _Stopped(Exception):
    """A signal asked this process to end."""


def run_on_ray(
    manifest: Manifest, arguments: Sequence[str], environment: Mapping[str, str], address: str | None, threads: int | None
) -> None:
    """Run `tokenspeed-run ARGUMENTS` as all ranks of a plan; returns when the first rank has ended well. SIGTERM and Ctrl-C let
    it finish what runs.

    `environment` is for the first rank, which serves. `address` is that of the cluster (None: the one this host belongs to, else
    one of this host alone). Raises UsageError where Ray is missing or has too little, RanksLost when a rank or its host ends.
    """
    ray = _ray(address)
    try:
        with suppress(_Stopped):
            _Ranks(ray, manifest, threads).run(arguments, environment)
    finally:
        ray.shutdown()


def _ray(address: str | None) -> Any:
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise UsageError(
            "Ray is not installed", where="--ray", fix="pip install 'tokenspeed-compile[ray]', on every host of the cluster"
        ) from None
    said: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    try:
        ray.init(address=address or os.environ.get("RAY_ADDRESS") or "auto", **said)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if address is not None or "RAY_ADDRESS" in os.environ:
            raise UsageError(
                "the Ray cluster cannot be reached",
                where="--ray-address" if address else "RAY_ADDRESS",
                got=str(error).splitlines()[0] if str(error) else type(error).__name__,
                fix="check the address and that `ray status` answers there",
            ) from None
        ray.init(include_dashboard=False, **said)
    return ray


@dataclass
class _Placed:
    """A rank's actor and the host it is on."""

    actor: Any
    node: str = ""
    host: str = ""
    code: int | None = None


class _Ranks:
    """The ranks of one plan, from their placement to their end."""

    def __init__(self, ray: Any, manifest: Manifest, threads: int | None) -> None:
        self._ray, self._mesh = ray, manifest.mesh
        self._resource = CORE if manifest.device is None else DEVICE
        self._threads = threads or 1
        self._ranks: dict[int, _Placed] = {}
        self._groups: list[Any] = []
        self._told: dict[int, list[str]] = {}

    def run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._place()
            self._start(arguments, environment)
            self._watch_until_stopped()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            for placed in self._ranks.values():
                self._ray.kill(placed.actor)
            for group in self._groups:
                with suppress(Exception):  # the cluster may be gone
                    self._ray.util.remove_placement_group(group)

    def _place(self) -> None:
        """An actor for each rank, in groups as the mesh says."""
        bundle = {CORE: self._threads} if self._resource == CORE else {CORE: 1, DEVICE: 1}
        each = bundle[self._resource]
        hosts = [int(node["Resources"].get(self._resource, 0) // each) for node in self._ray.nodes() if node["Alive"]]
        for group in rank_groups(self._mesh, hosts, self._resource):
            placement = self._ray.util.placement_group([bundle] * len(group.ranks), strategy=group.strategy)
            self._groups.append(placement)
            for at, rank in enumerate(group.ranks):
                strategy = self._ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
                    placement, placement_group_bundle_index=at
                )
                options = {"num_cpus": bundle[CORE], "num_gpus": bundle.get(DEVICE, 0), "scheduling_strategy": strategy}
                self._ranks[rank] = _Placed(self._ray.remote(RankActor).options(max_restarts=0, **options).remote())
        ready, late = self._ray.wait(
            [group.ready() for group in self._groups], num_returns=len(self._groups), timeout=_PLACING_SECONDS
        )
        if late:
            free = self._ray.available_resources()
            raise UsageError(
                "the Ray cluster has no place for the ranks",
                where="--ray",
                expected=f"{len(self._ranks)} x {bundle}, {len(ready)} of {len(self._groups)} groups placed",
                got=f"free: {free.get(CORE, 0):g} {CORE}, {free.get(DEVICE, 0):g} {DEVICE}",
                fix="`ray status` says what holds them",
            )

    def _start(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        for rank, placed in self._ranks.items():
            placed.node, placed.host = self._ask(rank, placed.actor.place.remote())
        port = self._ask(0, self._ranks[0].actor.free_port.remote())
        said = {"WORLD_SIZE": str(len(self._ranks)), "MASTER_ADDR": self._ranks[0].host, "MASTER_PORT": str(port)}
        for rank, placed in self._ranks.items():
            beside = [str(other) for other, its in self._ranks.items() if its.node == placed.node]
            # Ray lets a process see its own device alone, the first one there
            own = {"RANK": str(rank), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", HOST_RANKS: ",".join(beside)}
            threads = ["--threads", str(self._threads)]
            more = {} if rank else dict(environment)
            self._ask(rank, placed.actor.start.remote([*arguments, *threads], more | said | own))

    def _watch_until_stopped(self) -> None:
        try:
            self._watch()
        except _Stopped:
            self._ask(0, self._ranks[0].actor.stop.remote())
            self._watch()

    def _watch(self) -> None:
        """Until the first rank has ended well, and then the others."""
        ends = float("inf")
        while any(placed.code is None for placed in self._ranks.values()) and time.monotonic() < ends:
            self._listen()
            if self._ranks[0].code == 0:
                ends = min(ends, time.monotonic() + _ENDING_SECONDS)
            time.sleep(_POLL_SECONDS)

    def _listen(self) -> None:
        for rank, placed in self._ranks.items():
            if placed.code is None:
                placed.code = self._hear(rank, placed)
        failed = next((rank for rank, placed in self._ranks.items() if placed.code), None)
        if failed is not None:
            self._lost(failed, f"ended with exit code {self._ranks[failed].code}")

    def _hear(self, rank: int, placed: _Placed) -> int | None:
        code, lines = self._ask(rank, placed.actor.news.remote())
        for is_error, line in lines:
            print(line if rank == 0 else f"rank {rank}: {line}", file=sys.stderr if is_error or rank else sys.stdout, flush=True)
            if is_error:
                self._told.setdefault(rank, []).append(line)
        return code

    def _ask(self, rank: int, question: Any) -> Any:
        """An actor's answer. Raises RanksLost when there is none."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(question, timeout=_ACTOR_SECONDS)
        except errors.GetTimeoutError:
            self._lost(rank, f"is silent: its actor has not answered for {_ACTOR_SECONDS:.0f} s")
        except errors.RayActorError:
            self._lost(rank, "is gone: its Ray actor died")

    def _lost(self, rank: int, how: str) -> None:
        """Let the other ranks say what they noticed, which step it was, then end all. Raises RanksLost."""
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        others = {number: placed for number, placed in self._ranks.items() if number != rank and placed.code is None}
        while time.monotonic() < deadline and not any("last step" in line for lines in self._told.values() for line in lines):
            for number, placed in others.items():
                with suppress(Exception):  # it may be gone too
                    _, lines = self._ray.get(placed.actor.news.remote(), timeout=_POLL_SECONDS * 5)
                    self._told.setdefault(number, []).extend(line for _, line in lines)
            time.sleep(_POLL_SECONDS)
        words = [*self._told.get(rank, [])[-6:], *(line for number in others for line in self._told.get(number, [])[-6:])]
        host = self._ranks[rank].host
        raise RanksLost(
            f"rank {rank} {how}",
            where=f"rank {rank}" + (f" on {host}" if host else ""),
            got="; ".join(line.strip() for line in words if line.strip()),
            fix="look at that rank's own messages (`ray logs`, `ray status`), then start again",
        )


def _stop(_number: int, _frame: object) -> None:
    raise _Stopped
