"""Records to figures, and figures to a page and a terminal."""

from __future__ import annotations

import re

import msgspec
import numpy as np
import pytest
from tokenspeed.runtime.scheduling.request import SchedulerStats
from tokenspeed.runtime.simulation.page import page
from tokenspeed.runtime.simulation.report import TrafficReport, class_report, classes_by, latencies, summary_of
from tokenspeed.runtime.simulation.simulate import Scenario, simulate
from tokenspeed.runtime.simulation.svg import Axis, Line, chart
from tokenspeed.runtime.simulation.timeline import Timeline, TimelineRecorder, as_clients_saw_it, in_bins
from tokenspeed.runtime.simulation.turns import TurnRecord

from .tiny import crowd, tiny_manifest


def record(arrival: float, *tokens: float, **fields) -> TurnRecord:
    return TurnRecord("a", 0, arrival, fields.pop("prompt_tokens", 10), token_seconds=list(tokens), **fields)


def test_figures_of_a_class() -> None:
    records = [record(0.0, 1.0, 1.5, 3.0, cached_tokens=5), record(2.0, 6.0), record(5.0, result="refused")]
    report = class_report("all", records, seconds=60.0, accelerators=2)
    assert (report.turns, report.refused, report.failed) == (3, 1, 0)
    assert (report.input_tokens, report.cached_tokens, report.output_tokens) == (20, 5, 4)
    assert report.hit_rate == 0.25
    assert (report.ttft_seconds.count, report.ttft_seconds.p50, report.ttft_seconds.maximum) == (2, 2.5, 4.0)
    assert (report.tpot_seconds.count, report.tpot_seconds.mean, report.tokens_per_second_per_user) == (1, 1.0, 1.0)
    assert (report.inter_token_seconds.count, report.inter_token_seconds.minimum) == (2, 0.5)
    assert report.turn_seconds.maximum == 4.0
    assert (report.tokens_per_minute_per_accelerator, report.output_tokens_per_minute_per_accelerator) == (12.0, 2.0)


def test_gaps_are_within_turns() -> None:
    gaps = latencies([record(0, 1, 2, 4), record(0, 9), record(0, 7, 7.5)])["inter_token_seconds"]
    assert gaps.tolist() == [1, 2, 0.5]


def test_nothing_gives_zeros() -> None:
    report = class_report("all", [], 0.0, 1)
    assert report.ttft_seconds.count == 0 and report.tokens_per_second_per_user == 0
    assert classes_by(lambda item: item.tenant, [], 0.0, 1) == ()


def test_classes_are_reported_where_there_are_several() -> None:
    records = [record(0, 1, priority=5), record(0, 1, priority=-1), record(0, 2, priority=5)]
    assert [(item.name, item.turns) for item in classes_by(lambda item: item.priority, records, 1.0, 1)] == [("-1", 1), ("5", 2)]
    assert classes_by(lambda item: item.tenant, records, 1.0, 1) == ()


def test_a_summary_is_numpys() -> None:
    values = np.random.default_rng(0).exponential(size=1000)
    assert summary_of(values).p99 == pytest.approx(float(np.percentile(values, 99)))


def test_json_comes_back_and_the_page_stands_alone() -> None:
    report = simulate(tiny_manifest(), crowd(6), Scenario(3))
    again = msgspec.json.decode(msgspec.json.encode(report), type=TrafficReport)
    assert again == report
    text = page(again)
    assert text.count("<svg") == text.count("</svg>") == 8
    assert not re.search(r"(src|href)=|https?://|<script", text)
    hostile = page(msgspec.structs.replace(report, plan={"model": "<b>"}))
    assert "<b>" not in hostile and "&lt;b&gt;" in hostile


def test_charts_hold_their_points_and_escape_their_texts() -> None:
    drawn = chart(
        "a < b", Axis("x", logarithmic=True), Axis("y"), [Line("one", [0.0, 0.1, 10.0], [0, 1, 3]), Line("&", [1], [2])]
    )
    assert "a &lt; b" in drawn and "&amp;" in drawn and drawn.count("<polyline") == 2
    points = re.findall(r'points="([^"]*)"', drawn)[0].split()
    assert len(points) == 2, "zero has no logarithm"
    assert all(62 <= float(x) <= 502 and 40 <= float(y) <= 220 for x, y in (point.split(",") for point in points))
    assert "nothing to show" in chart("empty", Axis("x"), Axis("y"), [])


def test_no_words_of_a_chart_lie_on_others() -> None:
    """By the boxes of their letters, taken as wide as most fonts have them."""
    report = simulate(tiny_manifest(), crowd(12), Scenario(3))
    for drawn in re.findall(r"<svg.*?</svg>", page(report)):
        boxes = []
        for attributes, words in re.findall(r"<text ([^>]*)>([^<]*)</text>", drawn):
            if "rotate" in attributes or not words:
                continue
            x, y = (float(re.findall(rf'\b{name}="([-\d.]+)"', attributes)[0]) for name in "xy")
            width, anchor = 6.0 * len(words), re.search(r'text-anchor="(\w+)"', attributes)
            left = x - width * {"end": 1.0, "middle": 0.5}.get(anchor[1] if anchor else "", 0.0)
            boxes.append((left, y - 8, left + width, y, words))
        for place, (left, top, right, bottom, words) in enumerate(boxes):
            assert left >= 0 and right <= 530, words
            for other in boxes[place + 1 :]:
                apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
                assert apart, (words, other[4])


def test_a_measured_run_over_time() -> None:
    records = [record(0, 1, 2, 3), record(1, 3, 4, 5)]
    found = as_clients_saw_it(records, 10.0)
    width = 10.0 / len(found.seconds)
    assert sum(found.waiting) * width == pytest.approx(1 + 2) and sum(found.running) * width == pytest.approx(2 + 2)
    assert sum(found.output_tokens_per_second) * width == pytest.approx(6)
    assert found.busy_share == () and as_clients_saw_it([], 1.0) == Timeline()


def test_bins_keep_what_was_counted() -> None:
    times = tuple(float(second) for second in range(1, 1001))
    long = Timeline(times, running=(2.0,) * 999 + (0.0,), busy_share=tuple(second % 2 for second in times))
    found = in_bins(long)
    assert len(found.seconds) < 200 and found.seconds[-1] == 1000 and found.kv_usage == ()
    assert np.mean(found.busy_share) == pytest.approx(0.5) and set(np.round(found.running, 9)) == {2.0}


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-3.0, 1e9], [1e-9, 2e-9]])
def test_any_range_has_a_few_ticks(values: list[float]) -> None:
    drawn = chart("t", Axis("x"), Axis("y"), [Line("one", list(range(len(values))), values)])
    assert not re.search(r"[^i]nan[^c]|inf", drawn) and 4 <= drawn.count('class="grid"') <= 20


def test_a_long_run_keeps_few_points() -> None:
    recorder = TimelineRecorder(interval=1.0)
    taken = 0
    for second in range(5000):
        if second >= recorder.due:
            recorder.take(float(second), _stats(second), float(second) / 2)
            taken += 1
    timeline = recorder.timeline()
    assert taken > 600 > len(timeline.seconds) > 200
    assert all(share == pytest.approx(0.5) for share in timeline.busy_share)
    assert all(rate == pytest.approx(3.0) for rate in timeline.output_tokens_per_second)


def _stats(second: int) -> SchedulerStats:
    zeros = dict.fromkeys(SchedulerStats.__struct_fields__, 0)
    return SchedulerStats(**(zeros | {"generation_tokens": 3 * second}))
