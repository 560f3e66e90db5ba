"""A report as one HTML page: figures as tables, latencies and the run over time as charts. No network, no scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment

from ...plans.units import format_count, format_seconds
from ..benchmark.statistics import Summary
from ..scheduling.ablation import FEATURES
from ..scheduling.policy import AGENTIC, PLAIN
from .report import CURVE_POINTS, ClassReport, TrafficReport
from .svg import Axis, Line, chart

_LATENCIES = {
    "ttft_seconds": "Time to first token",
    "turn_seconds": "Turn time",
    "tpot_seconds": "Time per output token",
    "inter_token_seconds": "Between tokens",
}

_TEMPLATE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title><style>
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em; color: #222 }
h1 { font-size: 1.4em } h2 { font-size: 1.1em; margin-top: 2em }
table { border-collapse: collapse; margin: .5em 0 }
td, th { padding: .2em .8em .2em 0; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left } .facts td { text-align: left }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1em }
svg { width: 100%; font: 11px system-ui, sans-serif } .title { font-size: 13px; font-weight: 600 } .grid { stroke: #e4e4e4 }
</style></head><body>
<h1>{{ title }}</h1>
<table class="facts">{% for name, value in facts %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
<h2>Turns</h2>
<table><tr>{% for name in headings %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in classes %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</table>
<h2>Latencies</h2>
<p>Share of turns (of gaps, for times between tokens) that took no longer.</p>
<div class="charts">{% for item in latencies %}<div>{{ item | safe }}</div>{% endfor %}</div>
{% if over_time %}<h2>Over time</h2>
<div class="charts">{% for item in over_time %}<div>{{ item | safe }}</div>{% endfor %}</div>{% endif %}
</body></html>
"""

HEADINGS = (
    "class", "turns", "TTFT p50", "p90", "p99", "TPOT p50", "p90", "p99", "gap p99", "turn p50", "p90", "p99", "hit rate",
    "TPS/user", "TPM", "output TPM",
)  # fmt: skip


def page(report: TrafficReport) -> str:
    """The whole page, UTF-8 text."""
    name = f"{report.plan.get('model', 'a server')} on {report.plan.get('target', '')}".removesuffix(" on ")
    classes = (report.all, *report.priorities, *report.tenants)
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    return template.render(
        title=f"{report.kind.capitalize()} traffic: {name}",
        facts=facts(report),
        headings=HEADINGS,
        classes=[class_row(item) for item in classes],
        latencies=[_latency(report, key, title) for key, title in _LATENCIES.items() if report.curves.get(key)],
        over_time=_over_time(report),
    )


def class_row(report: ClassReport) -> list[str]:
    """Under `HEADINGS`."""

    def three(summary: Summary) -> list[str]:
        return [format_seconds(value) for value in (summary.p50, summary.p90, summary.p99)]

    latencies = [*three(report.ttft_seconds), *three(report.tpot_seconds), format_seconds(report.inter_token_seconds.p99)]
    rates = report.tokens_per_minute_per_accelerator, report.output_tokens_per_minute_per_accelerator
    return [
        report.name,
        str(report.turns),
        *latencies,
        *three(report.turn_seconds),
        f"{report.hit_rate:.1%}",
        f"{report.tokens_per_second_per_user:.1f}",
        *(format_count(rate) for rate in rates),
    ]


def facts(report: TrafficReport) -> list[tuple[str, str]]:
    """What a reader wants to know first, in words."""
    traffic = report.traffic
    loop = f"{traffic.get('agents')} agents, closed loop" if traffic.get("loop") == "closed" else "open loop"
    found = [
        ("traffic", f"{traffic.get('source')}: {traffic.get('sessions')} sessions, {traffic.get('turns')} turns; {loop}"),
        ("makespan", format_seconds(report.makespan_seconds)),
        ("tokens", f"{report.all.input_tokens:,} in, {report.all.output_tokens:,} out"),
        ("refused, failed", f"{report.all.refused}, {report.all.failed}"),
    ]
    if report.kind == "measured":
        found.insert(0, ("server", ", ".join(f"{name} {value}" for name, value in report.plan.items())))
    if traffic.get("unfinished"):
        found.append(("unfinished", f"{traffic['unfinished']} turns when the time was up"))
    left = traffic.get("left_out_turns")
    if left:
        found.append(("left out", f"{left} turns, {traffic.get('left_out_sessions')} whole sessions"))
    if report.policy:
        found.append(("policy", _policy(report.policy)))
    if report.settings:
        found.append(("engine", ", ".join(f"{name} {_setting(value)}" for name, value in report.settings.items())))
    machine, cache = report.machine, report.cache
    if machine is not None:
        shares = f"{machine.busy_share:.1%} busy, {machine.speed_of_light_share:.1%} of the speed of light"
        found.append(("machine", f"{machine.accelerators} accelerators, {shares}, {machine.steps:,} steps"))
    if cache is not None:
        found.append(
            ("KV blocks", f"{cache.device_blocks:,} on the device, {cache.host_blocks:,} on the host, of {cache.block_tokens}")
        )
        hit = f"{cache.hit_rate:.2%} hit ({cache.host_hit_rate:.2%} on the host)"
        moved = f"{cache.offloaded_tokens:,} offloaded, {cache.reloaded_tokens:,} reloaded"
        preemptions = f"{machine.preemptions} preemptions, " if machine is not None else ""
        found.append(("KV tokens", f"{hit}, {moved}, {preemptions}{cache.recomputed_tokens:,} recomputed"))
    return found


def _policy(policy: Mapping[str, Any]) -> str:
    off = [name for name in FEATURES if policy.get(name) == getattr(PLAIN, name)]
    changed = [
        f"{name} {_setting(value)}" for name, value in policy.items() if name not in off and value != getattr(AGENTIC, name)
    ]
    kind = "plain" if len(off) == len(FEATURES) else f"without {', '.join(off)}" if off else "all features"
    return "; ".join([kind, *changed])


def _setting(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _latency(report: TrafficReport, key: str, title: str) -> str:
    shares: Sequence[float] = [100 * index / (CURVE_POINTS - 1) for index in range(CURVE_POINTS)]
    return chart(title, Axis("seconds", logarithmic=True), Axis("% of turns"), [Line(title, report.curves[key], shares)])


def _over_time(report: TrafficReport) -> list[str]:
    time = report.timeline
    if not time.seconds:
        return []
    minutes = [seconds / 60 for seconds in time.seconds]
    axis = Axis("minutes")

    def over(title: str, unit: str, **lines: Sequence[float]) -> str:
        return chart(title, axis, Axis(unit), [Line(label, minutes, values) for label, values in lines.items()])

    return [
        over("Requests", "requests", running=time.running, waiting=time.waiting),
        over("KV pool and machine", "share", **{"KV in use": time.kv_usage, "busy": time.busy_share}),
        over("Output", "tokens/s", output=time.output_tokens_per_second),
        over("Prompts admitted, cached tokens included", "tokens/s", prompts=time.prompt_tokens_per_second),
    ]
