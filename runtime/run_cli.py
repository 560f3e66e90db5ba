"""tokenspeed-run: loads a plan and serves it, or completes one prompt, or holds a conversation. No compiler inside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from ..plans.command import run_command
from ..plans.errors import UsageError
from ..plans.reader import Plan
from ..plans.units import parse_bytes
from .entrypoint.tool_formats.names import NAMES
from .host import check_host
from .launcher import launched
from .parent_death import end_with_parent
from .startup_clock import StartupClock

if TYPE_CHECKING:
    from ..plans.schema import Manifest
    from ..plans.signing import TrustStore


_KEYS = "TOKENSPEED_API_KEY"


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--weights", metavar="DIR|FILE|dummy", help="Where the weights are. [default: in the plan]")
@click.option("--verify", is_flag=True, help="Replay the plan's goldens on this machine first; refuse to serve if one fails.")
@click.option("--prompt", metavar="TEXT", help="Complete TEXT on standard output and exit.")
@click.option("--chat", is_flag=True, help="Chat on the terminal: one message a line of standard input.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one.")
@click.option(
    "--api-key", "api_keys", multiple=True, envvar=_KEYS, metavar="KEY",
    help="Accept this API key; may be repeated. Better in TOKENSPEED_API_KEY: other users see command lines.",
)  # fmt: skip
@click.option(
    "--keys-file", type=click.Path(path_type=Path), metavar="FILE", help="Keys of named tenants: TENANT KEY [WEIGHT] a line."
)
@click.option(
    "--service-tier", "service_tiers", multiple=True, metavar="NAME=PRIORITY[,DEADLINE_MS[,INTER_TOKEN_MS]]",
    help="What a request's service_tier means; may be repeated. [default: priority=-10,1000 default=0 flex=10,,1000]",
)  # fmt: skip
@click.option(
    "--tool-parser", default="auto", show_default=True, type=click.Choice(["auto", "none", *NAMES]),
    help="How the model writes tool calls; auto: as its chat template shows, none: answers stay text.",
)  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(min=1), help="For --prompt and --chat. [default: what the context holds]")
@click.option("--temperature", default=0.0, show_default=True, type=click.FloatRange(0, 2), help="For --prompt and --chat.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="For --prompt and --chat. [default: random]")
@click.option("--threads", type=click.IntRange(min=1), help="Threads the engine computes with. [default: the cores it may use]")
@click.option("--pin-threads", is_flag=True, help="Keep each thread that computes on a core of its own.")
@click.option(
    "--drain-timeout", default=30.0, show_default=True, type=click.FloatRange(min=0),
    help="Seconds that running requests have to finish after SIGTERM.",
)  # fmt: skip
@click.option(
    "--step-timeout", default=60.0, show_default=True, type=click.FloatRange(min=1),
    help="For several ranks: seconds until one that is silent, or a step that does not end, ends all.",
)  # fmt: skip
@click.option("--ray", "on_ray", is_flag=True, help="Start the ranks on the hosts of a Ray cluster; the first one serves.")
@click.option(
    "--ray-address", metavar="ADDRESS", help="For --ray. [default: RAY_ADDRESS, this host's cluster, or this host alone]"
)
@click.option("--overlap/--no-overlap", default=True, show_default=True, help="Schedule each step while the one before it runs.")
@click.option(
    "--policy", default="agentic", show_default=True, type=click.Choice(["agentic", "plain"]),
    help="The scheduler's rules; plain: strict priorities, first come first served, least recently used evicted first.",
)  # fmt: skip
@click.option("--without", multiple=True, metavar="FEATURE", help="Turn a feature of the policy off; may be repeated.")
@click.option(
    "--disk-kv", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Keep KV on disk too, below the plan's tier in host memory: it is there after a restart. One engine for a folder.",
)  # fmt: skip
@click.option("--disk-kv-bytes", metavar="SIZE", help="How much of that disk, such as 500GiB.")
@click.option("--trust-store", type=click.Path(path_type=Path), help="Public key, or folder of them, the plan must be signed by.")
@click.option("--require-signature", is_flag=True, help="Refuse to go on without a trust store.")
@click.option("--json", "as_json", is_flag=True, help="Print results as JSON; errors are JSON too.")
@run_command
def main(
    plan: Path,
    weights: str | None,
    verify: bool,
    prompt: str | None,
    chat: bool,
    host: str,
    port: int,
    api_keys: tuple[str, ...],
    keys_file: Path | None,
    service_tiers: tuple[str, ...],
    tool_parser: str,
    max_tokens: int | None,
    temperature: float,
    seed: int | None,
    threads: int | None,
    pin_threads: bool,
    drain_timeout: float,
    step_timeout: float,
    on_ray: bool,
    ray_address: str | None,
    overlap: bool,
    policy: str,
    without: tuple[str, ...],
    disk_kv: Path | None,
    disk_kv_bytes: str | None,
    trust_store: Path | None,
    require_signature: bool,
    as_json: bool,
) -> None:
    """Serve PLAN over HTTP with OpenAI's API.

    With --prompt or --chat: use it on the terminal instead. All ranks of a plan are started on this host; across hosts:
    torchrun --nnodes N ... -m tokenspeed.runtime PLAN OPTIONS.
    """
    clock = StartupClock()
    clock.finish("imports")
    if prompt is not None and chat:
        raise UsageError("--prompt and --chat exclude each other", fix="give one of them")
    if chat and on_ray:
        raise UsageError("--chat needs this terminal, the first rank of --ray runs elsewhere", fix="serve, or use --prompt")
    with Plan.open(plan, trust=_trust(trust_store), require_signature=require_signature) as opened:
        if on_ray:
            from .ray_ranks import run_on_ray

            keys = {_KEYS: " ".join(api_keys)} if api_keys else {}
            run_on_ray(opened.manifest, _arguments(click.get_current_context()), keys, ray_address, threads)
            return
        disk_bytes = _disk_bytes(opened.manifest, disk_kv, disk_kv_bytes)
        check_host(opened.manifest)
        clock.finish("plan checks")
        by = launched(opened.manifest)
        if by is not None and by.serves_store:
            end_with_parent()  # a launcher that stays beside its processes; nobody else would end them
        if by is not None and by.rank:
            from .rank_process import take_part

            take_part(opened, weights, threads, by, step_timeout, verify)
            return
        from .entrypoint.keys_file import read_keys_file
        from .entrypoint.launch import LaunchOptions, launch  # only now: a refusal must not wait for these imports
        from .entrypoint.service_tiers import read_tiers

        options = LaunchOptions(
            plan=str(plan),
            weights=weights,
            threads=threads,
            pin_threads=pin_threads,
            overlap=overlap,
            verify=verify,
            step_timeout=step_timeout,
            policy=policy,
            without=_features(without),
            disk_kv=None if disk_kv is None else str(disk_kv.absolute()),
            disk_kv_bytes=disk_bytes,
            host=host,
            port=port,
            api_keys=api_keys,
            tenant_keys=() if keys_file is None else read_keys_file(keys_file),
            service_tiers=read_tiers(service_tiers),
            tool_parser=tool_parser,
            drain_timeout=drain_timeout,
            prompt=prompt,
            chat=chat,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            as_json=as_json,
        )
        launch(opened, options, clock)


def _features(names: tuple[str, ...]) -> tuple[str, ...]:
    """Checked here, where the answer comes at once. Raises UsageError."""
    if names:
        from .scheduling.ablation import POLICIES, without

        without(POLICIES["agentic"], names)
    return names


def _disk_bytes(manifest: Manifest, folder: Path | None, size: str | None) -> int:
    """Checked here, where the answer comes at once. Raises UsageError."""
    if folder is None:
        if size is not None:
            raise UsageError("--disk-kv-bytes is of --disk-kv", where="--disk-kv-bytes", got=size, fix="give --disk-kv FOLDER")
        return 0
    from .disk_kv import check_disk_kv

    return check_disk_kv(manifest, folder, None if size is None else parse_bytes(size, "--disk-kv-bytes"))


_OF_THIS_PROCESS = {"on_ray", "ray_address", "threads", "api_keys"}


def _arguments(context: click.Context) -> list[str]:
    """What the user said, for a rank elsewhere: paths are absolute, keys go by the environment."""
    found: list[str] = []
    for parameter in context.command.params:
        name, value = parameter.name or "", context.params.get(parameter.name or "")
        if name == "weights" and value is not None and Path(value).exists():
            value = Path(value)
        if isinstance(parameter, click.Argument):
            found.append(_text(value))
        elif name not in _OF_THIS_PROCESS and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            if isinstance(value, bool):
                found.append((parameter.opts if value else parameter.secondary_opts)[0])
            else:
                every = value if isinstance(value, tuple) else (value,)
                found += [word for item in every for word in (parameter.opts[0], _text(item))]
    return found


def _text(value: object) -> str:
    return str(value.absolute()) if isinstance(value, Path) else str(value)


def _trust(path: Path | None) -> TrustStore | None:
    if path is None:
        return None
    from ..plans.signing import TrustStore

    return TrustStore.open(path)
