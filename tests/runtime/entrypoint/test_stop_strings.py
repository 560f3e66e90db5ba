"""Stop strings are found however the text arrives, and nothing that could begin one is shown early."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenspeed.runtime.entrypoint.stop_strings import StopStrings

LETTERS = st.text("ab", max_size=30)


def run(pieces: list[str], stops: tuple[str, ...]) -> tuple[str, str | None]:
    matcher, shown = StopStrings(stops), ""
    for piece in pieces:
        text, stop = matcher.push(piece)
        shown += text
        if stop is not None:
            return shown, stop
        assert not any(stop in shown for stop in stops)
    return shown + matcher.flush(), None


@given(LETTERS, st.text("ab", min_size=1, max_size=4))
def test_one_character_at_a_time_finds_the_first_occurrence(text: str, stop: str) -> None:
    expected = (text.partition(stop)[0], stop) if stop in text else (text, None)
    assert run(list(text), (stop,)) == expected


@given(st.lists(LETTERS, max_size=6), st.lists(st.text("ab", min_size=1, max_size=4), max_size=4))
def test_the_shown_text_is_a_stop_free_beginning(pieces: list[str], stops: list[str]) -> None:
    shown, stop = run(pieces, tuple(stops))
    whole = "".join(pieces)
    assert whole.startswith(shown)
    assert (stop is None) == (not any(each in whole for each in stops))
    assert stop is None or whole[len(shown) :].startswith(stop)
    assert not any(each in shown for each in stops)


def test_a_possible_start_is_held_back() -> None:
    matcher = StopStrings(("<end>",))
    assert matcher.push("text <en") == ("text ", None)
    assert matcher.push("t") == ("<ent", None)
    assert matcher.push("<") == ("", None)
    assert matcher.flush() == "<"


def test_without_stop_strings_everything_passes() -> None:
    assert StopStrings(()).push("text") == ("text", None)
