"""What every HTTP endpoint shares: the model, the engine, who may ask, and which requests are being answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from .access import ApiKeys
from .api_error import ApiError, unavailable
from .engine_client import EngineClient
from .given_calls import GivenCalls
from .metrics import Metrics
from .served_model import ServedModel
from .service_tiers import DEFAULT_TIERS, ServiceTier


class Service:
    """`body_limit` in bytes. `draining` refuses new generations; `idle` is set while no generation is being answered."""

    def __init__(
        self,
        model: ServedModel,
        engine: EngineClient,
        keys: ApiKeys,
        metrics: Metrics,
        *,
        tiers: Mapping[str, ServiceTier] = DEFAULT_TIERS,
        body_limit: int = 32 << 20,
    ) -> None:
        self.model, self.engine, self.keys, self.metrics = model, engine, keys, metrics
        self.tiers = tiers
        self.body_limit = body_limit
        self.given_calls = GivenCalls()
        self.draining = False
        self.idle = asyncio.Event()
        self.idle.set()
        self._answering = 0

    @property
    def ready(self) -> bool:
        return self.engine.ready and not self.draining

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Around the whole answer to a generation request. Raises ApiError (503) while draining."""
        if self.draining:
            raise unavailable("the server is shutting down", "draining")
        self._answering += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._answering -= 1
            if not self._answering:
                self.idle.set()

    def check_model(self, name: str | None) -> None:
        """Raises ApiError (404) for any model but the one served; no name means that one."""
        if name is not None and name != self.model.name:
            message = f"the model {name!r} does not exist here; this server serves {self.model.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def drain(self, timeout: float) -> bool:
        """Refuse new generations and wait up to `timeout` seconds for the running ones; whether all have ended."""
        self.draining = True
        try:
            await asyncio.wait_for(self.idle.wait(), timeout)
        except TimeoutError:
            return False
        return True
