"""Ways to spoil the code of the KV manager, one place at a time; each must be caught by its tests.

`python -m tokenspeed.tests.runtime.scheduling.kv_mutations` tries all of them and prints those that no check caught;
`--sample N --seed S` a part, `--only TEXT` those whose description contains it. A mutation that changes nothing that anybody
could see is listed in `EQUIVALENT`, with the reason.
"""

from __future__ import annotations
import __future__

import argparse
import ast
import inspect
import signal
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from random import Random

import pytest
from tokenspeed.runtime.scheduling import (
    blocks,
    disk_tier,
    host_tier,
    kv,
    order,
    pool,
    retention,
    sequence_blocks,
    stored_blocks,
    windows,
)

from . import (
    test_blocks,
    test_copies_first,
    test_disk_room,
    test_disk_tier,
    test_fetching,
    test_full_host,
    test_host_tier,
    test_kv,
    test_pause,
    test_retention,
    test_windows,
)
from .exploring import explore
from .kv_equivalents import EQUIVALENT
from .random_traffic import Figures, play
from .small_world import Configuration, Prompt

TARGETS: tuple[types.ModuleType, ...] = (
    blocks,
    pool,
    host_tier,
    kv,
    order,
    retention,
    sequence_blocks,
    windows,
    stored_blocks,
    disk_tier,
)
TESTS = (
    test_blocks,
    test_kv,
    test_host_tier,
    test_copies_first,
    test_full_host,
    test_disk_room,
    test_disk_tier,
    test_fetching,
    test_pause,
    test_retention,
    test_windows,
)
CPU_SECONDS = 10.0
"""A check that takes so much of the processor is in a loop without end: caught."""

SEEDS = 60
MODEL = (Prompt("a", (1, 1, 1), 2, 1), Prompt("b", (2, 2, 2), 3, 1), Prompt("c", (1, 1, 3), 2, 0))

_OTHER: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


@dataclass(frozen=True)
class Mutation:
    """One place of one function, spoilt. `tree` is the whole function; `number` tells it from others that read alike."""

    module: types.ModuleType
    owner: str
    function: str
    what: str
    number: int
    tree: ast.FunctionDef

    @property
    def name(self) -> str:
        place = f"{self.owner}.{self.function}" if self.owner else self.function
        again = f" ({self.number})" if self.number else ""
        return f"{self.module.__name__.rpartition('.')[2]}.{place}: {self.what}{again}"


def mutations() -> list[Mutation]:
    """All that can be tried, in the order of the code."""
    return [mutation for module in TARGETS for mutation in _of_module(module)]


def _of_module(module: types.ModuleType) -> Iterator[Mutation]:
    for item in ast.parse(inspect.getsource(module)).body:
        members = item.body if isinstance(item, ast.ClassDef) else [item]
        owner = item.name if isinstance(item, ast.ClassDef) else ""
        for member in members:
            if isinstance(member, ast.FunctionDef) and not member.name.lstrip("_").startswith("check"):
                seen = Counter[str]()
                for what, tree in _of_function(member):
                    yield Mutation(module, owner, member.name, what, seen[what], tree)
                    seen[what] += 1


def _of_function(function: ast.FunctionDef) -> Iterator[tuple[str, ast.FunctionDef]]:
    for place, node in enumerate(ast.walk(function)):
        for what, spoil in _ways(node):
            tree = deepcopy(function)
            spoil(next(item for number, item in enumerate(ast.walk(tree)) if number == place))
            yield what, ast.fix_missing_locations(tree)


Spoil = Callable[[ast.AST], None]


def _ways(node: ast.AST) -> Iterator[tuple[str, Spoil]]:
    yield from _drops(node)
    yield from _conditions(node)
    yield from _operators(node)
    yield from _arguments(node)


def _drops(node: ast.AST) -> Iterator[tuple[str, Spoil]]:
    for field in ("body", "orelse"):
        statements = getattr(node, field, None)
        if not isinstance(statements, list) or isinstance(node, ast.Lambda):
            continue
        for at, statement in enumerate(statements):
            droppable = isinstance(statement, ast.Expr | ast.Assign | ast.AugAssign | ast.Delete | ast.Return | ast.If)
            if not droppable or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                continue

            def drop(spoilt: ast.AST, field: str = field, at: int = at) -> None:
                getattr(spoilt, field)[at] = ast.Pass()

            yield f"without {_text(statement)}", drop


def _conditions(node: ast.AST) -> Iterator[tuple[str, Spoil]]:
    if isinstance(node, ast.If | ast.While | ast.IfExp):

        def negate(spoilt: ast.AST) -> None:
            assert isinstance(spoilt, ast.If | ast.While | ast.IfExp)
            spoilt.test = ast.UnaryOp(ast.Not(), spoilt.test)

        yield f"not {_text(node.test)}", negate
    if isinstance(node, ast.comprehension):
        for at, test in enumerate(node.ifs):

            def always(spoilt: ast.AST, at: int = at) -> None:
                assert isinstance(spoilt, ast.comprehension)
                spoilt.ifs[at] = ast.Constant(True)

            yield f"whatever {_text(test)}", always
    if isinstance(node, ast.BoolOp):
        for at, value in enumerate(node.values):

            def leave_out(spoilt: ast.AST, at: int = at) -> None:
                assert isinstance(spoilt, ast.BoolOp)
                del spoilt.values[at]
                if len(spoilt.values) == 1:
                    spoilt.values.append(ast.Constant(isinstance(spoilt.op, ast.And)))

            yield f"{_text(node)} without {_text(value)}", leave_out


def _operators(node: ast.AST) -> Iterator[tuple[str, Spoil]]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:

        def compare(spoilt: ast.AST) -> None:
            assert isinstance(spoilt, ast.Compare)
            spoilt.ops[0] = _OTHER[type(spoilt.ops[0])]()  # pyright: ignore

        yield f"{_text(node)} with {_OTHER[type(node.ops[0])].__name__}", compare
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _OTHER:

        def operate(spoilt: ast.AST) -> None:
            assert isinstance(spoilt, ast.BinOp | ast.AugAssign)
            spoilt.op = _OTHER[type(spoilt.op)]()  # pyright: ignore[reportAttributeAccessIssue]

        yield f"{_text(node)} with {_OTHER[type(node.op)].__name__}", operate
    if isinstance(node, ast.BoolOp):

        def join(spoilt: ast.AST) -> None:
            assert isinstance(spoilt, ast.BoolOp)
            spoilt.op = _OTHER[type(spoilt.op)]()  # pyright: ignore[reportAttributeAccessIssue]

        yield f"{_text(node)} with {_OTHER[type(node.op)].__name__}", join
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):

        def affirm(spoilt: ast.AST) -> None:
            assert isinstance(spoilt, ast.UnaryOp)
            spoilt.op, spoilt.operand = ast.Not(), ast.UnaryOp(ast.Not(), spoilt.operand)

        yield f"{_text(node.operand)} for {_text(node)}", affirm
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):

        def other(spoilt: ast.AST) -> None:
            assert isinstance(spoilt, ast.Constant)
            spoilt.value = not spoilt.value if isinstance(spoilt.value, bool) else spoilt.value + 1  # pyright: ignore

        yield f"not {node.value!r}" if isinstance(node.value, bool) else f"{node.value!r} + 1", other


def _arguments(node: ast.AST) -> Iterator[tuple[str, Spoil]]:
    if not isinstance(node, ast.Call):
        return
    if len(node.args) > 1:

        def swap(spoilt: ast.AST) -> None:
            assert isinstance(spoilt, ast.Call)
            spoilt.args = [spoilt.args[1], spoilt.args[0], *spoilt.args[2:]]

        yield f"{_text(node)} with its arguments swapped", swap
    if isinstance(node.func, ast.Name) and node.func.id in ("reversed", "sorted"):

        def keep(spoilt: ast.AST) -> None:
            assert isinstance(spoilt, ast.Call)
            spoilt.func = ast.Name("list", ast.Load())

        yield f"{_text(node)} as it is", keep


def _text(node: ast.AST) -> str:
    lines = ast.unparse(node).splitlines()
    return lines[0] + (" ..." if len(lines) > 1 else "")


class _Patched:
    """The code with one mutation in it."""

    def __init__(self, mutation: Mutation) -> None:
        self._target = getattr(mutation.module, mutation.owner) if mutation.owner else mutation.module
        self._name, self._sound = mutation.function, vars(self._target)[mutation.function]
        tree = deepcopy(mutation.tree)
        for node in ast.walk(tree):  # outside of its class, `super` has to be told whose
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super":
                node.args = [ast.Name(mutation.owner, ast.Load()), ast.Name("self", ast.Load())]
        found: dict[str, object] = {}
        code = ast.fix_missing_locations(ast.Module([tree], []))
        exec(compile(code, "<mutation>", "exec", __future__.annotations.compiler_flag), vars(mutation.module), found)
        self._spoilt = found[mutation.function]

    def __enter__(self) -> None:
        self._put(self._sound, self._spoilt)

    def __exit__(self, *_: object) -> None:
        self._put(self._spoilt, self._sound)

    def _put(self, before: object, after: object) -> None:
        """In its class, or in all modules that have the function."""
        having = [module for name, module in sys.modules.items() if ".runtime.scheduling." in name]
        for owner in [self._target] if isinstance(self._target, type) else having:
            if vars(owner).get(self._name) is before:
                setattr(owner, self._name, after)


class EndlessLoop(Exception):
    pass


def _alarm(*_: object) -> None:
    raise EndlessLoop


def unit_tests() -> list[Callable[[], object]]:
    """The tests of blocks, pool, tier and retention, each with each of its parameters."""
    found: list[Callable[[], object]] = []
    for module in TESTS:
        for name, test in vars(module).items():
            if not name.startswith("test_"):
                continue
            marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
            if marks:
                for values in marks[0].args[1]:
                    found.append(lambda test=test, values=values: test(*(values if isinstance(values, tuple) else (values,))))
            elif inspect.signature(test).parameters:
                found.append(lambda test=test: _with_monkeypatch(test))
            else:
                found.append(test)
    return found


def _with_monkeypatch(test: Callable[[pytest.MonkeyPatch], object]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        test(patch)


def checks(seeds: int, models: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """What a mutation has to pass to be missed, quick ones first."""
    for test in unit_tests():
        yield "unit tests", test
    for seed in range(seeds):
        yield "random traffic", lambda seed=seed: play(seed, Figures())
        yield "random traffic", lambda seed=seed: play(seed, Figures(), on_disk=True)
    if models:
        yield "small model", lambda: explore(Configuration(MODEL, blocks=3, host_blocks=2))
        yield "small model", lambda: explore(Configuration(MODEL, blocks=3, host_blocks=1, in_flight=2), 1500)


def caught_by(mutation: Mutation, seeds: int = SEEDS, models: bool = True) -> str:
    """The kind of check that caught it; "" when none did."""
    before = signal.signal(signal.SIGPROF, _alarm)
    try:
        with _Patched(mutation):
            for kind, check in checks(seeds, models):
                signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS if kind != "small model" else 60.0)
                try:
                    check()
                except EndlessLoop:
                    return "endless loop"
                except (Exception, pytest.fail.Exception):
                    return kind
                finally:
                    signal.setitimer(signal.ITIMER_PROF, 0)
    finally:
        signal.signal(signal.SIGPROF, before)
    return ""


def require_sound(seeds: int = SEEDS, models: bool = True) -> None:
    """The code as it is passes what mutations are tried with; without that nothing is shown."""
    for _, check in checks(seeds, models):
        check()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of random traffic")
    parser.add_argument("--no-models", action="store_true")
    parser.add_argument("--part", default="0/1", help="this part of so many: 0/2 and 1/2 are everything")
    options = parser.parse_args(arguments)
    part, parts = map(int, options.part.split("/"))
    tried = [mutation for mutation in mutations() if options.only in mutation.name][part::parts]
    if options.sample is not None:
        tried = Random(options.seed).sample(tried, options.sample)
    require_sound(options.seeds, not options.no_models)
    counts, missed, begun = Counter[str](), 0, time.process_time()
    for mutation in tried:
        if mutation.name in EQUIVALENT:
            counts["equivalent"] += 1
            continue
        kind = caught_by(mutation, options.seeds, not options.no_models)
        counts[kind or "missed"] += 1
        if not kind:
            missed += 1
            print(f"missed: {mutation.name}", flush=True)
    print(f"{len(tried)} mutations: {dict(counts)}, {time.process_time() - begun:.0f} s of processor time")
    return missed


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
