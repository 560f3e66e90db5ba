"""Ranks that watch each other: an end, a silence and a step that takes too long are noticed on both sides, with names."""

from __future__ import annotations

import queue
import socket
from collections.abc import Iterator

import pytest
from tokenspeed.runtime.heartbeats import Beat, Hello, Line
from tokenspeed.runtime.rank_watch import LOOPBACK, RanksLost, RankWatch
from tokenspeed.runtime.watched_rank import WatchedRank

SHORT, LONG = 0.2, 60.0


@pytest.fixture
def losses() -> queue.Queue[RanksLost]:
    return queue.Queue()


@pytest.fixture
def words() -> queue.Queue[str]:
    return queue.Queue()


def joined(watch: RankWatch, rank: int, words: queue.Queue[str], timeout: float = LONG) -> WatchedRank:
    return WatchedRank(rank, LOOPBACK, watch.address, timeout, words.put)


def test_an_end_is_noticed_with_its_last_words(losses: queue.Queue[RanksLost], words: queue.Queue[str]) -> None:
    watch = RankWatch(3, LONG, losses.put, {1: 7}.get)
    first, second = joined(watch, 1, words), joined(watch, 2, words)
    first.began(4)
    first.failed("WeightsError: no such file")
    first.close()
    lost = losses.get(timeout=20)
    assert lost.what == "rank 1 ended with exit code 7" and "no such file" in lost.got
    assert lost.where == "rank 1 (last step 4)"
    second.close()
    watch.close()
    assert losses.empty() and words.empty()


def test_an_end_after_stop_is_none(losses: queue.Queue[RanksLost], words: queue.Queue[str]) -> None:
    watch = RankWatch(2, LONG, losses.put)
    rank = joined(watch, 1, words)
    watch.ends()
    rank.close()
    watch.close()
    assert losses.empty() and words.empty()


def silent_rank(watch: RankWatch, rank: int) -> Line:
    port, _, token = watch.address.partition("/")
    line = Line(socket.create_connection((LOOPBACK, int(port))))
    line.send(Hello(rank, token))
    return line


def test_silence_is_noticed(losses: queue.Queue[RanksLost]) -> None:
    watch = RankWatch(3, SHORT, losses.put)
    line = silent_rank(watch, 2)
    line.send(Beat(11))
    lost = losses.get(timeout=20)
    assert lost.what.startswith("rank 2 hangs") and lost.where == "rank 2 (last step 11)"
    line.close()
    watch.close()


def test_a_step_that_takes_too_long_names_who_has_not_begun_it(losses: queue.Queue[RanksLost], words: queue.Queue[str]) -> None:
    watch = RankWatch(3, 2.0, losses.put)
    ranks = [joined(watch, 1, words), joined(watch, 2, words)]
    ranks[0].began(5)
    watch.progress.began(5)
    lost = losses.get(timeout=20)
    assert "step 5" in lost.what and lost.where == "rank 2 (last step none)"
    for rank in ranks:
        rank.close()
    watch.close()


def test_steps_that_end_are_not_too_long(losses: queue.Queue[RanksLost]) -> None:
    watch = RankWatch(2, LONG, losses.put)
    watch.progress.began(5)
    watch.progress.began(6)
    watch.progress.ended(5)
    assert watch.progress.stuck()[0] == 6
    watch.progress.ended(6)
    assert watch.progress.stuck() == (-1, 0.0)
    watch.close()


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server((LOOPBACK, 0)) as made:
        yield made


def test_the_others_notice_the_first_ones_end(server: socket.socket, words: queue.Queue[str]) -> None:
    WatchedRank(1, LOOPBACK, f"{server.getsockname()[1]}/word", LONG, words.put)
    first, _ = server.accept()
    Line(first).send(Beat(3, "rank 2 ended"))
    first.close()
    assert words.get(timeout=20) == "the first rank has ended; rank 2 ended"


def test_the_others_notice_the_first_ones_silence(server: socket.socket, words: queue.Queue[str]) -> None:
    WatchedRank(1, LOOPBACK, f"{server.getsockname()[1]}/word", SHORT, words.put)
    first, _ = server.accept()
    assert words.get(timeout=20).startswith("the first rank hangs")
    first.close()


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", b'{"type":"Hello","rank":1,"token":"guessed"}\n', b"\n" * 9, b"x" * 99999]
)
def test_strangers_are_sent_away(said: bytes, losses: queue.Queue[RanksLost]) -> None:
    watch = RankWatch(2, LONG, losses.put)
    with socket.create_connection((LOOPBACK, int(watch.address.partition("/")[0]))) as stranger:
        stranger.sendall(said)
        stranger.settimeout(20)
        assert stranger.recv(1) == b""
    assert losses.empty() and not watch.knows(1)
    watch.close()
