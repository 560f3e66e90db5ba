"""The ranks of a plan as torch's process groups: one for each mesh axis, and one of all for messages of the first rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Literal

import torch
from torch import distributed
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from ..plans.errors import PlanError
from ..plans.mesh import STAGES
from ..plans.schema import Manifest
from .mesh import Rank
from .network_interface import interface_towards

Backend = Literal["gloo", "nccl"]

STEP_SECONDS = 60.0
"""Longest that ranks are silent or a step takes, unless said otherwise: one that hangs is noticed by then (rank_watch.py)."""

_MEETING = timedelta(minutes=5)
_IDLE = timedelta(days=365)
_AT_ONCE, _REPORT_AT_ONCE = 16384, 1024
_SIZE_BYTES = 8
_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
_PLAN, _WATCH, _SHARED = "plan", "watch", "shared"


class Collectives:
    """A rank's groups. Of one thread at a time; but `send` and `receive` may be used beside collectives of steps, `report` and
    `reported` beside both.

    Every rank must make its own, which waits up to five minutes for all the others. `address` is host:port of a store, which
    rank 0 serves unless `serve` is false. A collective that takes twice `step_timeout` seconds fails, where nothing else has
    ended the ranks before.
    """

    def __init__(
        self, rank: Rank, backend: Backend, address: str, *, serve: bool = True, step_timeout: float = STEP_SECONDS
    ) -> None:
        limit = timedelta(seconds=2 * step_timeout)
        host, _, port = address.rpartition(":")
        self.host = host
        _meet_through(host)
        self._store = TCPStore(host, int(port), rank.count, serve and rank.number == 0, timeout=_MEETING)
        distributed.init_process_group(backend, store=self._store, timeout=_MEETING, world_size=rank.count, rank=rank.number)
        self.rank = rank
        self._groups: dict[str, distributed.ProcessGroup] = {}
        self._shared: dict[str, int] = {}
        for axis in rank.mesh:
            for members in rank.peers(axis.name):
                group = _group(members, limit, backend)
                if rank.number in members and axis.size > 1:
                    self._groups[axis.name] = group
        if backend == "nccl":
            self._connect()
        # ranks wait here as long as no request comes
        self._messages = _group(list(range(rank.count)), _IDLE, "gloo")
        self._reports = _group(list(range(rank.count)), limit, "gloo") if set(rank.reporters) - {0} else None

    @property
    def groups(self) -> Mapping[str, distributed.ProcessGroup]:
        """This rank's group along each axis of several ranks."""
        return self._groups

    def _connect(self) -> None:
        """Meet once along each axis, and send once from stage to stage, for which pairs of ranks connect by themselves: what a
        device's library takes is taken before collectives are captured."""
        for axis, group in self._groups.items():
            word, place = torch.zeros(1, device="cuda"), self.rank.coordinates[axis]
            distributed.all_reduce(word, group=group)
            if axis == STAGES and place > 0:
                distributed.recv(word, group=group, group_src=place - 1)
            if axis == STAGES and place + 1 < group.size():
                distributed.send(word, group=group, group_dst=place + 1)
        torch.cuda.synchronize()

    def agree(self, plan_id: str) -> None:
        """Raises PlanError where the first rank has another plan."""
        if self.rank.number == 0:
            self._store.set(_PLAN, plan_id)
            return
        expected = self._store.get(_PLAN).decode()
        if plan_id != expected:
            raise PlanError(
                "The ranks have different plans.",
                where=f"rank {self.rank.number}",
                expected=f"{expected}, the first rank's",
                got=plan_id,
                fix="give all hosts the same plan.bin",
            )

    def share(self, axis: str, name: str, own: bytes) -> list[bytes]:
        """What each rank along an axis, in order, calls by that name, once they all have said so."""
        members = next(members for members in self.rank.peers(axis) if self.rank.number in members)
        turn = self._shared[name] = self._shared.get(name, 0) + 1
        self._store.set(f"{_SHARED}/{name}/{turn}/{self.rank.number}", own.hex())
        return [bytes.fromhex(self._store.get(f"{_SHARED}/{name}/{turn}/{number}").decode()) for number in members]

    def meet(self) -> None:
        """Wait until all ranks are here, however long that takes."""
        distributed.barrier(self._messages)

    def watched_at(self, address: str) -> None:
        """On rank 0: tell the others where it watches them."""
        self._store.set(_WATCH, address)

    def watch_address(self) -> str:
        """What rank 0 said there."""
        return self._store.get(_WATCH).decode()

    def send(self, message: bytes) -> None:
        """From rank 0 to all the others."""
        _hand_over(message, _AT_ONCE, lambda part: distributed.broadcast(part, 0, self._messages))

    def receive(self) -> bytes:
        """What rank 0 sends next."""
        return _take_over(_AT_ONCE, lambda part: distributed.broadcast(part, 0, self._messages))

    def report(self, message: bytes) -> None:
        """To rank 0, of a rank of `Rank.reporters`; by one thread."""
        _hand_over(message, _REPORT_AT_ONCE, lambda part: distributed.send(part, 0, self._reports))

    def reported(self, rank: int) -> bytes:
        """What that rank reports next; on rank 0, by one thread."""
        return _take_over(_REPORT_AT_ONCE, lambda part: distributed.recv(part, rank, self._reports))

    def close(self) -> None:
        distributed.destroy_process_group()


def backend_of(manifest: Manifest) -> Backend:
    """What the ranks of a plan meet through: their devices' own library, or the hosts' network."""
    return "gloo" if manifest.device is None else "nccl"


def _hand_over(message: bytes, at_once: int, give: Callable[[torch.Tensor], object]) -> None:
    """In a tensor of fixed size that begins with the message's own, and another one for what does not fit."""
    head = torch.zeros(at_once, dtype=torch.uint8)
    head[:_SIZE_BYTES] = torch.frombuffer(bytearray(len(message).to_bytes(_SIZE_BYTES, "little")), dtype=torch.uint8)
    body = torch.frombuffer(bytearray(message), dtype=torch.uint8)
    first = body[: at_once - _SIZE_BYTES]
    head[_SIZE_BYTES : _SIZE_BYTES + len(first)] = first
    give(head)
    if len(body) > len(first):
        give(body[len(first) :].contiguous())


def _take_over(at_once: int, fill: Callable[[torch.Tensor], object]) -> bytes:
    head = torch.empty(at_once, dtype=torch.uint8)
    fill(head)
    size = int.from_bytes(head[:_SIZE_BYTES].numpy().tobytes(), "little")
    first = head[_SIZE_BYTES : _SIZE_BYTES + size].numpy().tobytes()
    if len(first) == size:
        return first
    rest = torch.empty(size - len(first), dtype=torch.uint8)
    fill(rest)
    return first + rest.numpy().tobytes()


def _meet_through(host: str) -> None:
    """Have gloo use the interface by which the store is reached, unless the user has chosen: by itself it takes the one that this
    host's own name resolves to, which others may not reach."""
    name = interface_towards(host)
    if name is not None:
        os.environ.setdefault(_GLOO_INTERFACE, name)


def _group(members: Sequence[int], limit: timedelta, backend: Backend) -> distributed.ProcessGroup:
    """For those that are no members it is one of which they can do nothing."""
    made = distributed.new_group(list(members), limit, backend)
    return made  # pyright: ignore[reportReturnType]
