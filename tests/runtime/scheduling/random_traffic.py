"""The state machine of test_state_machine.py played by a seeded generator, on small pools with a host tier: sessions that go on,
so that units are saved, evicted and brought back. Many events for little time, for mutations of the code as well."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from .test_state_machine import PREFIXES, SchedulerMachine


@dataclass
class Figures:
    """What happened: events, and tokens saved and brought back; requests that read what could not be loaded."""

    events: int = 0
    saved: int = 0
    loaded: int = 0
    evictions: int = 0
    spoilt: int = 0
    preemptions: int = 0
    stored: int = 0
    fetched: int = 0
    refused: int = 0
    restored: int = 0

    def add(self, machine: SchedulerMachine, events: int) -> None:
        self.events += events
        for stats in (*machine.ended_processes, machine.scheduler.stats()):
            self.saved, self.loaded = self.saved + stats.offloaded_tokens, self.loaded + stats.reloaded_tokens
            self.evictions, self.preemptions = self.evictions + stats.evictions, self.preemptions + stats.preemptions
            self.stored, self.fetched = self.stored + stats.stored_tokens, self.fetched + stats.fetched_tokens
            self.refused, self.restored = self.refused + stats.refused_tokens, self.restored + stats.restored_tokens
        self.spoilt += len(machine.device.spoilt_readers)


def play(seed: int, figures: Figures, events: int = 120, on_disk: bool = False) -> None:
    """One world of random events, then everything to its end. Raises what the checks of the machine raise. `on_disk`: with a tier
    on disk that is much used."""
    chosen, machine = Random(seed), SchedulerMachine()
    _start(machine, chosen, on_disk)
    machine.sound()
    for _ in range(events):
        _event(machine, chosen)
        machine.sound()
    machine.teardown()
    figures.add(machine, events)


def _start(machine: SchedulerMachine, chosen: Random, on_disk: bool) -> None:
    machine.start(
        blocks=chosen.choice([4, 5, 5, 6, 8]),
        geometry=chosen.choice([(4, 4), (2, 4), (1, 1), (2, 2)]),
        max_rows=chosen.choice([4, 12, 20]),
        max_decode_rows=3,
        max_sequences=chosen.choice([1, 2, 3, 4]),
        prefill_chunk=chosen.choice([3, 12]),
        overlap=chosen.random() < 0.7,
        stages=chosen.choice([1, 1, 1, 3]),
        host_units=chosen.choice([1, 1, 2, 3] if on_disk else [1, 4, 12, 40]),
        places=chosen.choice([1, 3, 9, 40]) if on_disk else 0,
        copied_units=chosen.choice([1, 1, 2, 100]),
        windows=() if on_disk else chosen.choice([(), (), (1,), (6,), (4, 6)]),
        window_units=chosen.choice([0, 3, 20]),
    )


def _event(machine: SchedulerMachine, chosen: Random) -> None:
    kind = chosen.choices(
        ["submit", "next", "abort", "schedule", "execute", "complete", "fail", "hint", "tick", "serve", "job", "restart"],
        [3, 6, 1, 12, 3, 10, 2, 1, 1, 4, 10, 1.5],
    )[0]
    launched = bool(machine.device.launched)
    session = chosen.choice(["", "one", "two"])
    if kind == "submit":
        suffix = [chosen.randrange(3) for _ in range(chosen.randrange(7))]
        stops = frozenset(chosen.sample(range(12), chosen.randrange(4)))
        salt = chosen.choice(["", "", "", "tenant"])
        most, priority = chosen.randrange(1, 15), chosen.randrange(3)
        machine.submit(chosen.choice(PREFIXES), suffix, most, priority, salt, stops, chosen.choice([0, 0, 3]), session, None)
    elif kind == "next" and machine.ended:
        machine.next_turn(
            -1 - chosen.randrange(min(4 if machine.kv.disk is None else 12, len(machine.ended))),
            chosen.randrange(50, 101),
            [chosen.randrange(3)],
        )
    elif kind == "abort":
        machine.abort(chosen.randrange(100))
    elif kind == "schedule" and len(machine.device.launched) < machine.depth:
        machine.schedule()
    elif kind == "execute" and launched:
        machine.execute()
    elif kind == "complete" and launched:
        machine.complete(chosen.random() < 0.5)
    elif kind == "fail" and launched:
        machine.fail(0)
    elif kind == "job" and machine.device.jobs:
        machine.end_job(chosen.randrange(100), chosen.random() < 0.65)
    elif kind == "restart" and machine.kv.disk is not None and not launched:
        machine.restart(0)
    elif kind == "hint":
        machine.hint(session or "one", chosen.choice(["tool_call", "end_of_turn", "close"]))
    elif kind == "tick":
        machine.tick(chosen.choice([0.0, 1.0, 50.0, 300.0]))
    elif kind == "serve":
        machine.serve(chosen.randrange(1, 12))
