"""From a checked plan to a running server or terminal session."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from ...plans.reader import Plan
from ..startup_clock import StartupClock
from .access import ApiKeys
from .engine_client import EngineClient, Sockets
from .engine_session import ENGINE_MODULE, EngineError, EngineProcess, engine_session
from .keys_file import TenantKey, tenant_weights
from .listening import listen, url
from .service_tiers import ServiceTier

if TYPE_CHECKING:
    from .service import Service


@dataclass(frozen=True)
class LaunchOptions:
    """What `tokenspeed-run` was asked for; see its options."""

    plan: str
    weights: str | None
    threads: int | None
    pin_threads: bool
    overlap: bool
    verify: bool
    step_timeout: float
    policy: str
    without: tuple[str, ...]
    host: str
    port: int
    api_keys: tuple[str, ...]
    tenant_keys: tuple[TenantKey, ...]
    service_tiers: Mapping[str, ServiceTier]
    disk_kv: str | None
    disk_kv_bytes: int
    tool_parser: str
    drain_timeout: float
    prompt: str | None
    chat: bool
    max_tokens: int | None
    temperature: float
    seed: int | None
    as_json: bool


def launch(plan: Plan, options: LaunchOptions, clock: StartupClock, engine: str = ENGINE_MODULE) -> None:
    """The engine process, module `engine`, is started before the HTTP stack is imported, so that the two load side by side.

    Raises TokenspeedError when the port is taken or the engine cannot start.
    """
    # Until the server handles signals itself, SIGTERM unwinds like Ctrl-C, so that no engine or socket is left behind.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        served = options.prompt is None and not options.chat
        server = listen(options.host, options.port) if served else None
        with closing(Sockets()) as sockets, _process(plan, options, sockets, engine) as process:
            asyncio.run(_run(plan, options, clock, sockets, process, server))
    finally:
        signal.signal(signal.SIGTERM, before)


def _process(plan: Plan, options: LaunchOptions, sockets: Sockets, module: str) -> closing[EngineProcess]:
    return closing(EngineProcess(sockets, _engine_options(plan, options), module))


def _engine_options(plan: Plan, options: LaunchOptions) -> dict[str, object]:
    """Fields of `engine_process.EngineOptions`, which this process does not import."""
    return {
        "plan": options.plan,
        "plan_id": plan.plan_id,
        "weights": options.weights,
        "threads": options.threads,
        "pin_threads": options.pin_threads,
        "overlap": options.overlap,
        "verify": options.verify,
        "step_timeout": options.step_timeout,
        "policy": options.policy,
        "without": options.without,
        "disk_kv": options.disk_kv,
        "disk_kv_bytes": options.disk_kv_bytes,
        "tenant_weights": tenant_weights(options.tenant_keys),
    }


async def _run(
    plan: Plan,
    options: LaunchOptions,
    clock: StartupClock,
    sockets: Sockets,
    process: EngineProcess,
    server: socket.socket | None,
) -> None:
    from .metrics import Metrics
    from .served_model import served_model
    from .service import Service

    model = served_model(plan, options.tool_parser)
    client = EngineClient(sockets)
    metrics = Metrics(model.name, lambda: client.stats)
    client.on_news(metrics.observe_news)
    service = Service(model, client, ApiKeys(options.api_keys, options.tenant_keys), metrics, tiers=options.service_tiers)
    async with engine_session(client, process):
        if server is not None:
            await _serve(service, server, options, clock)
        else:
            await _started(service)
            await _terminal(service, options, clock)


async def _started(service: Service) -> None:
    await service.engine.wait_ready()
    if service.engine.failure is not None:
        raise EngineError(service.engine.failure)


async def _serve(service: Service, server: socket.socket, options: LaunchOptions, clock: StartupClock) -> None:
    """Listens from the start, so that /health and /ready tell how the loading goes."""
    from .http_server import serve

    serving = asyncio.create_task(serve(service, server, options.drain_timeout))
    starting = asyncio.create_task(_started(service))
    try:
        await asyncio.wait({serving, starting}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            _announce(service, url(server), options, clock)
        await serving
    finally:
        starting.cancel()
        serving.cancel()
        await asyncio.wait({serving, starting})


def _announce(service: Service, address: str, options: LaunchOptions, clock: StartupClock) -> None:
    phases, total = service.engine.startup, clock.total
    if options.as_json:
        fields = {"url": f"{address}/v1", "model": service.model.name, "plan_id": service.model.plan_id}
        print(msgspec.json.encode(fields | {"startup_seconds": phases, "total_seconds": total}).decode(), flush=True)
        return
    print(f"{service.model.name} is served at {address}/v1", flush=True)
    print(f"start-up {total:.2f} s: {_breakdown(clock, phases)}", flush=True)
    if not (options.api_keys or options.tenant_keys) and not _is_loopback(options.host):
        print(f"warning: whoever can reach {options.host} can use this server; set --api-key or --keys-file", file=sys.stderr)


def _breakdown(clock: StartupClock, engine_phases: dict[str, float]) -> str:
    own = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in clock.phases.items())
    engine = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in engine_phases.items())
    return f"{own}; engine: {engine}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


async def _terminal(service: Service, options: LaunchOptions, clock: StartupClock) -> None:
    from .terminal import TerminalOptions, complete_text, converse

    start_up = clock.total
    terminal = TerminalOptions(options.max_tokens, options.temperature, options.seed, as_json=options.as_json)
    if options.prompt is None:
        await converse(service, terminal)
        return
    completed = await complete_text(service, options.prompt, terminal)
    if options.as_json:
        print(completed.to_json(startup_seconds=start_up, model=service.model.name), flush=True)
        return
    print(completed.summary(), file=sys.stderr)
    print(f"start-up {start_up:.2f} s: {_breakdown(clock, service.engine.startup)}", file=sys.stderr)
