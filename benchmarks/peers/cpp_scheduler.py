"""The C++ scheduler of the PyPI wheel `tokenspeed-scheduler`, through its Python module, with no device behind it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ANSWER, _MOST_STEPS = 5, 10_000


class PeerScheduler:
    """One group of full attention, one page of the request-private snapshot pool, no host tier; every dispatched chunk is
    acknowledged, with a token once its prompt is computed."""

    def __init__(
        self,
        module: ModuleType,
        prompts: Callable[[], Iterable[NDArray[np.int32]]],
        running: int,
        pages: int,
        page_tokens: int,
        prefill_chunk: int,
        max_tokens: int,
    ) -> None:
        self._module, self._prompts, self._running, self._max_tokens = module, prompts, running, max_tokens
        config = module.SchedulerConfig()
        config.max_batch_size, config.max_scheduled_tokens = running, running + prefill_chunk
        config.num_device_pages, config.num_host_pages, config.num_snapshot_pages = pages, 1, 1
        config.prefix_granularity = page_tokens
        config.enable_mixed_prefill_decode = config.disable_l2_cache = True
        config.cache_groups = [module.CacheGroupConfig("full", page_tokens, pages, module.AttnKind.Full)]
        self._scheduler: Any = module.Scheduler(config)

    def fill(self) -> None:
        """Prompts that run are submitted first; the others once these decode, as they would find no place before."""
        specs = [self._spec(number, tokens) for number, tokens in enumerate(self._prompts())]
        self._scheduler.submit_requests(specs[: self._running])
        for _ in range(_MOST_STEPS):
            if self._scheduler.decoding_size() == self._running:
                break
            self._scheduler.advance(self._event(self._scheduler.next_execution_plan()))
        else:
            raise SystemExit(f"the peer does not come to run {self._running} requests at a time")
        if specs[self._running :]:
            self._scheduler.submit_requests(specs[self._running :])

    def step(self) -> dict[str, tuple[float, float]]:
        """`calls`: next_execution_plan and advance alone. `with results`: and what is between them."""
        marks = [(time.perf_counter(), time.thread_time())]

        def mark() -> None:
            marks.append((time.perf_counter(), time.thread_time()))

        plan = self._scheduler.next_execution_plan()
        mark()
        event = self._event(plan)
        mark()
        self._scheduler.advance(event)
        mark()
        wall = [later[0] - earlier[0] for earlier, later in pairwise(marks)]
        cpu = [later[1] - earlier[1] for earlier, later in pairwise(marks)]
        return {"calls": (wall[0] + wall[2], cpu[0] + cpu[2]), "with results": (sum(wall), sum(cpu))}

    def _spec(self, number: int, tokens: NDArray[np.int32]) -> Any:
        spec = self._module.RequestSpec()
        spec.request_id, spec.tokens, spec.max_new_tokens = f"request-{number}", tokens.tolist(), self._max_tokens
        return spec

    def _event(self, plan: Any) -> Any:
        event, kind = self._module.ExecutionEvent(), self._module.ForwardEvent.ExtendResult
        for batch in plan.forward:
            batch.block_tables_arrays()
            prompts = batch.num_extends()
            before, lengths, whole = batch.extend_prefix_lens, batch.input_lengths, batch.prefill_lengths
            for place, name in enumerate(batch.request_ids):
                result = kind()
                result.request_id = name
                last = place >= prompts or before[place] + lengths[place] >= whole[place]
                result.tokens = [_ANSWER] if last else []
                event.add_event(result)
        return event
