"""A report as one HTML page: figures as tables, latencies and the run over time as charts. No network, no scripts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment

from ...plans.units import format_count, format_seconds
from ..benchmark.statistics import Summary
from ..scheduling.ablation import FEATURES
from ..scheduling.policy import AGENTIC, PLAIN
from .report import CURVE_POINTS, ClassReport, TrafficReport
from .svg import Axis, Line, Mark, chart
from .timeline import in_bins

_LATENCIES = {
    "ttft_seconds": ("Time to first token", "% of turns"),
    "turn_seconds": ("Turn time", "% of turns"),
    "tpot_seconds": ("Time per output token", "% of turns"),
    "inter_token_seconds": ("Between tokens", "% of gaps"),
}
_MARKED = (50, 90, 99)
_SHARES = (0.0, 25.0, 50.0, 75.0, 100.0)

_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c242e; --muted: #5d6875; --rule: #dfe4ea; --panel: #f6f8fa;
  --s0: #1f5fa8; --s1: #c4561c; --s2: #2f8a4b; --s3: #8a3a8f }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --text: #e3e8ee; --muted: #98a4b2; --rule: #2b343f;
  --panel: #1a2029; --s0: #78b1f3; --s1: #f0a06a; --s2: #84cf98; --s3: #d79adb } }
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1140px; padding: 0 1em; color: var(--text);
  background: var(--page) }
h1 { font-size: 1.5em; margin: 0 } h2 { font-size: 1.1em; margin: 2.2em 0 .6em } p { color: var(--muted); margin: .2em 0 1em }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: .7em; margin: 1.4em 0 }
.card { background: var(--panel); border: 1px solid var(--rule); border-radius: 8px; padding: .6em .8em }
.card strong { display: block; font-size: 1.35em; font-variant-numeric: tabular-nums }
.card span { color: var(--muted); font-size: .9em }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .3em 1.1em .3em 0; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap }
th { font-weight: 600 } td:first-child, th:first-child { text-align: left }
.facts td { text-align: left; white-space: normal; vertical-align: top }
.facts td:first-child { color: var(--muted); white-space: nowrap }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr)); gap: 1em }
.charts > div { background: var(--panel); border: 1px solid var(--rule); border-radius: 8px; padding: .5em }
svg { width: 100%; display: block; font: 11px system-ui, sans-serif } svg text { fill: var(--muted) }
svg .title { font-size: 13px; font-weight: 600; fill: var(--text) } svg .mark { fill: var(--text) } .grid { stroke: var(--rule) }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round } .area { opacity: .13 }
.line.s0 { stroke: var(--s0) } .line.s1 { stroke: var(--s1) } .line.s2 { stroke: var(--s2) } .line.s3 { stroke: var(--s3) }
.area.s0, .dot.s0 { fill: var(--s0) } .area.s1, .dot.s1 { fill: var(--s1) } .area.s2, .dot.s2 { fill: var(--s2) }
.area.s3, .dot.s3 { fill: var(--s3) }
"""

_TEMPLATE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title><style>{{ style | safe }}</style></head><body>
<h1>{{ title }}</h1>
<p>{{ traffic }}</p>
<div class="cards">
{% for name, value in cards %}<div class="card"><strong>{{ value }}</strong><span>{{ name }}</span></div>{% endfor %}</div>
<h2>Latencies</h2>
<p>Share of turns (of gaps, for times between tokens) that took no longer; half, 90 % and 99 % are marked.</p>
<div class="charts">{% for item in latencies %}<div>{{ item | safe }}</div>{% endfor %}</div>
{% if over_time %}<h2>Over time</h2>
<div class="charts">{% for item in over_time %}<div>{{ item | safe }}</div>{% endfor %}</div>{% endif %}
<h2>Turns</h2>
<div class="wide"><table><tr>{% for name in headings %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in classes %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>{% endfor %}</table></div>
<h2>What was run</h2>
<table class="facts">{% for name, value in facts %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</table>
</body></html>
"""

HEADINGS = (
    "class", "turns", "TTFT p50", "p90", "p99", "TPOT p50", "p90", "p99", "gap p99", "turn p50", "p90", "p99", "hit rate",
    "TPS/user", "TPM", "output TPM",
)  # fmt: skip


def page(report: TrafficReport) -> str:
    """The whole page, UTF-8 text."""
    name = f"{report.plan.get('model', 'a server')} on {report.plan.get('target', '')}".removesuffix(" on ")
    classes, known = (report.all, *report.priorities, *report.tenants), facts(report)
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    return template.render(
        title=f"{report.kind.capitalize()} traffic: {name}",
        style=_STYLE,
        traffic=dict(known)["traffic"],
        cards=_cards(report),
        facts=known,
        headings=HEADINGS,
        classes=[class_row(item) for item in classes],
        latencies=[_latency(report, key, *named) for key, named in _LATENCIES.items() if report.curves.get(key)],
        over_time=_over_time(report),
    )


def _cards(report: TrafficReport) -> list[tuple[str, str]]:
    """What everybody asks for first."""
    every = report.all
    found = [("makespan", format_seconds(report.makespan_seconds)), ("of prompt tokens were cached", f"{every.hit_rate:.1%}")]
    for name, summary in (
        ("first token", every.ttft_seconds),
        ("per output token", every.tpot_seconds),
        ("turn", every.turn_seconds),
    ):
        found.append((f"{name}, half of turns; p99 {format_seconds(summary.p99)}", format_seconds(summary.p50)))
    found.append(("output tokens a minute", _whole(every.output_tokens_per_minute_per_accelerator)))
    if report.machine is not None:
        found.append(("of the time busy", f"{report.machine.busy_share:.0%}"))
    return found


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
        *(_whole(rate) for rate in rates),
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
        found.append(("engine", ", ".join(itertools.starmap(_engine_setting, report.settings.items()))))
    machine, cache = report.machine, report.cache
    if machine is not None:
        shares = f"{machine.busy_share:.1%} busy, {machine.speed_of_light_share:.1%} of the speed of light"
        count = "1 accelerator" if machine.accelerators == 1 else f"{machine.accelerators} accelerators"
        found.append(("machine", f"{count}, {shares}, {machine.steps:,} steps"))
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


def _engine_setting(name: str, value: float | bool) -> str:
    """As "host_seconds 500 us", "hints on"."""
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return f"{words} {'on' if value else 'off'}"
    return f"{words.removesuffix(' seconds')} {format_seconds(value)}" if name.endswith("_seconds") else f"{words} {value:g}"


def _whole(rate: float) -> str:
    """Tokens a minute."""
    return format_count(round(rate))


def _latency(report: TrafficReport, key: str, title: str, share: str) -> str:
    curve = report.curves[key]
    shares: Sequence[float] = [100 * index / (CURVE_POINTS - 1) for index in range(CURVE_POINTS)]
    marks = [Mark(curve[percent], percent, f"p{percent} {format_seconds(curve[percent])}") for percent in _MARKED]
    time = Axis("", logarithmic=True, show=format_seconds)
    return chart(title, time, Axis(share, ticks=_SHARES), [Line(title, curve, shares, marks=marks)])


def _over_time(report: TrafficReport) -> list[str]:
    time = in_bins(report.timeline)
    if not time.seconds:
        return []
    unit, each = ("minutes", 60.0) if time.seconds[-1] > 180 else ("seconds", 1.0)
    times, axis = [seconds / each for seconds in time.seconds], Axis(unit)

    def over(title: str, y: Axis, **lines: Sequence[float]) -> str:
        return chart(title, axis, y, [Line(label, times, values, steps=True) for label, values in lines.items() if values])

    share = Axis("share", show=lambda value: f"{value:.0%}", ticks=tuple(value / 100 for value in _SHARES))
    charts = [over("Turns", Axis("turns"), running=time.running, waiting=time.waiting)]
    if time.busy_share:
        charts.append(over("KV pool and machine", share, **{"KV in use": time.kv_usage, "busy": time.busy_share}))
    return [
        *charts,
        over("Output", Axis("tokens/s"), output=time.output_tokens_per_second),
        over("Prompts, cached tokens included", Axis("tokens/s"), prompts=time.prompt_tokens_per_second),
    ]
