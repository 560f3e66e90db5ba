"""Where a plan's arrays live and its programs run: what the executor asks of the host and of devices alike. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from .block_tier import BlockTier
from .host_arrays import HostArray
from .operands import Addressed, Surroundings


class Placement(Protocol):
    """Static arrays, allocated once.

    A step is: write all of `next_inputs`, `inputs_filled`, the launches, then `read`. A new request is: `before_filling_slot`,
    write its row of `slots`, `slot_filled`. All of it happens inside `running`.
    """

    @property
    def surroundings(self) -> Surroundings:
        """What programs are expanded in."""
        ...

    @property
    def slots(self) -> Mapping[str, HostArray]:
        """The slot buffers, as the host writes them; what programs have written to them need not be seen here."""
        ...

    @property
    def tier(self) -> BlockTier:
        """KV blocks in host memory."""
        ...

    @property
    def threads(self) -> int:
        """Threads of the host that programs compute with."""
        ...

    @property
    def scratch_bytes(self) -> int:
        """Memory that functions keep for themselves; part of the plan's `workspace`."""
        ...

    def running(self) -> AbstractContextManager[object]:
        """What everything but `close` happens inside of."""
        ...

    def wait_for_weights(self) -> None:
        """Return when programs may run; they may be expanded while weights are on their way. Raises what loading those does."""
        ...

    def next_inputs(self) -> Mapping[str, HostArray]:
        """The step ABI's arrays, as the host writes them, once they may be written; not the same ones for each step."""
        ...

    def inputs_filled(self) -> None:
        """What `next_inputs` gave last are the inputs of the next step."""
        ...

    def before_filling_slot(self, slot: int) -> None:
        """Wait until that row of `slots` may be written again."""
        ...

    def slot_filled(self, slot: int, names: Iterable[str]) -> None:
        """That row of these slot buffers is new."""
        ...

    def read(self, arrays: Mapping[str, Addressed]) -> Callable[[], Mapping[str, HostArray]]:
        """What programs left in these arrays by the launches so far; what it gives waits for it, on any thread, inside `running`.

        It must be called before the second `read` after this one.
        """
        ...

    def close(self) -> None:
        """Give all memory back."""
        ...
