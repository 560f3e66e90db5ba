"""What the engine process is told reaches its scheduler."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, cast

from tokenspeed.runtime.engine_channel import EngineChannel
from tokenspeed.runtime.engine_process import EngineOptions, _loop
from tokenspeed.runtime.executor_interface import Executor
from tokenspeed.runtime.scheduling.ablation import without
from tokenspeed.runtime.scheduling.policy import AGENTIC, PLAIN

from .fake_executor import EchoExecutor
from .simulation.tiny import tiny_manifest
from .test_engine import ListChannel


class Planned:
    manifest = tiny_manifest()


def scheduler(policy: str, features: tuple[str, ...]) -> Any:
    options = EngineOptions(
        plan="", plan_id="", weights=None, threads=None, pin_threads=False, overlap=True, verify=False, step_timeout=60.0,
        policy=policy, without=features, tenant_weights={"ours": 3.0}, commands="", news="",
    )  # fmt: skip
    channel = cast(EngineChannel, ListChannel())
    with ExitStack() as closing:
        loop: Any = _loop(cast(Any, Planned()), cast(Executor, EchoExecutor()), channel, options, None, closing)
    assert loop._roofline is not None
    return loop._scheduler


def test_policy_features_and_weights() -> None:
    made = scheduler("agentic", ("swap", "aging_seconds"))
    assert made._state.rules == without(AGENTIC, ["swap", "aging_seconds"])
    assert made._state.shares._weights == {"ours": 3.0} and made._state.costs is not None
    assert scheduler("plain", ())._state.rules == PLAIN
