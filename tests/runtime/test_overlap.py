"""Which launches run beside collectives: none that touches an array on its way."""

from __future__ import annotations

from tokenspeed.runtime.functions.context import Launch
from tokenspeed.runtime.overlap import Meeting, Overlap, Span, joined

X, SUM, OTHER = (0, 64), (64, 128), (128, 192)


def meeting(name: str, log: list[str], shares: bool = False) -> Meeting:
    def note(what: str) -> Launch:
        return lambda: log.append(f"{what} {name}")

    return Meeting(note("run"), note("begin"), note("finish"), shares)


def ran(*steps: tuple[str, list[Span], list[Span]]) -> list[str]:
    """What happens where launches (upper case: collectives; *: of shared memory) read and write these arrays."""
    log: list[str] = []
    overlap, launches, meetings = Overlap(), list[Launch](), list[Meeting]()
    for name, reads, writes in steps:
        launches += overlap.before(reads, writes)
        if name[0].isupper():
            meetings.append(meeting(name, log, name.endswith("*")))
            launches += overlap.begin(meetings[-1], reads, writes)
        else:
            launches.append(lambda name=name: log.append(name))
    for launch in joined([*launches, *overlap.finish()], meetings):
        launch()
    return log


def test_what_touches_nothing_of_it_runs_beside_it() -> None:
    assert ran(("A", [X], [SUM]), ("b", [X], [OTHER]), ("c", [SUM], [OTHER])) == ["begin A", "b", "finish A", "c"]


def test_its_operand_may_not_be_overwritten() -> None:
    assert ran(("A", [X], [SUM]), ("b", [OTHER], [OTHER]), ("c", [], [X])) == ["begin A", "b", "finish A", "c"]
    assert ran(("A", [X], [SUM]), ("b", [OTHER], [OTHER]), ("c", [], [(63, 65)])) == ["begin A", "b", "finish A", "c"]


def test_what_nothing_runs_beside_is_one_launch() -> None:
    assert ran(("A", [X], [SUM]), ("b", [SUM], [OTHER])) == ["run A", "b"]
    assert ran(("b", [], [X]), ("A", [X], [SUM])) == ["b", "run A"]


def test_several_are_on_their_way_unless_they_share_memory() -> None:
    two = [("A", [X], [X]), ("B", [SUM], [SUM]), ("c", [OTHER], [OTHER]), ("d", [SUM], [X])]
    assert ran(*two) == ["begin A", "begin B", "c", "finish A", "finish B", "d"]
    shared = [("A*", [X], [X]), ("b", [OTHER], [OTHER]), ("B*", [SUM], [SUM]), ("c", [OTHER], [OTHER])]
    assert ran(*shared) == ["begin A*", "b", "finish A*", "begin B*", "c", "finish B*"]
