"""Plugins: what they add, in which order, how a broken one is reported, and which names are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenspeed.targets.plugins import Plugins, find_plugins
from tokenspeed.targets.registry import TARGETS

AVX2 = TARGETS["cpu-avx2"]
Installer = Callable[..., None]

TARGET = """
from dataclasses import replace
from tokenspeed.targets.cpu.machines import CPU_MACHINES
TARGETS = tuple(replace(CPU_MACHINES[-2], name=name) for name in NAMES)
"""
KERNELS = """
from pathlib import Path
from tokenspeed.targets.machine import Kernel, KernelSet
KERNELS = KernelSet("cpu", (
    Kernel(NAME, "ts.add", "native." + FUNCTION, lambda rows: 0.5, "set"),
), (Path(__file__).parent / "kernel.cpp",))
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    """install(name, module text, C++ text): a distribution, with entry points for TARGETS and KERNELS if its text has them."""
    monkeypatch.syspath_prepend(str(tmp_path))
    packages: list[str] = []

    def put(name: str, text: str, source: str = "", version: str = "1.0") -> None:
        package = "plugin_of_test_" + name.replace("-", "_")
        packages.append(package)
        folder, info = tmp_path / package, tmp_path / f"{package}-{version}.dist-info"
        folder.mkdir()
        info.mkdir()
        (folder / "__init__.py").write_text(text)
        if source:
            (folder / "kernel.cpp").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        groups = [
            (group, attribute) for group, attribute in (("targets", "TARGETS"), ("kernels", "KERNELS")) if attribute in text
        ]
        points = [f"[tokenspeed.{group}]\nit = {package}:{attribute}\n" for group, attribute in groups]
        (info / "entry_points.txt").write_text("\n".join(points))

    yield put
    for package in packages:
        sys.modules.pop(package, None)


def target(*names: str) -> str:
    return f"NAMES = {names!r}\n{TARGET}"


def kernel(name: str, function: str) -> str:
    return f"NAME, FUNCTION = {name!r}, {function!r}\n{KERNELS}"


def find() -> Plugins:
    return find_plugins(tuple(TARGETS.values()))


def test_none_are_installed_here() -> None:
    assert find() == Plugins() and Plugins().extended(AVX2) is AVX2


def test_targets_come_in_the_order_of_their_distributions(install: Installer) -> None:
    install("zebra", target("z1", "z0"), version="2.5")
    install("Ant_Hill", target("a"))
    found = find()
    assert [plugin.name for plugin in found.used] == ["ant-hill", "zebra"] and not found.refused
    assert list(found.targets) == ["a", "z1", "z0"]
    behind = found.behind(found.targets["z1"], ())
    assert list(behind) == ["zebra"] and behind["zebra"].startswith("2.5 sha256:") and len(behind["zebra"]) == 11 + 64


def test_kernels_are_offered_to_their_family_and_named_where_they_were_considered(install: Installer) -> None:
    install("adder", kernel("adder.add", "adder_add"), 'KERNEL(adder_add, "") {}\n')
    found = find()
    assert not found.refused
    extended = found.extended(AVX2)
    assert extended.kernels[:-1] == AVX2.kernels and extended.kernels[-1].name == "adder.add"
    assert found.extended(replace(AVX2, family="other")).kernels == AVX2.kernels
    assert list(found.behind(AVX2, ["ts.linear", "ts.add"])) == ["adder"]
    assert found.behind(AVX2, ["ts.linear"]) == {}
    ((source, owner),) = found.sources(["native.add", "native.adder_add"]).items()
    assert (source.name, owner) == ("kernel.cpp", "adder") and found.sources(["native.add", "add"]) == {}


def test_a_rule_that_fails_refuses_with_the_plugins_name(install: Installer) -> None:
    text = kernel("adder.add", "adder_add").replace('"set")', '"set", lambda operation, machine: 1 // 0)')
    install("adder", text, 'KERNEL(adder_add, "") {}')
    operation: Any = None
    refusal = find().extended(AVX2).kernels[-1].refuses(operation, AVX2)
    assert refusal is not None and refusal.startswith("plugin adder: its rule failed, ZeroDivisionError")


def test_the_digest_follows_the_files_and_not_their_place(install: Installer, tmp_path: Path) -> None:
    install("one", target("a"))
    first = find().used[0].digest
    assert find().used[0].digest == first
    (tmp_path / "plugin_of_test_one" / "more.txt").write_text("x")
    assert find().used[0].digest != first


BROKEN = (
    ("raise RuntimeError('no licence')\nTARGETS = ()", "", "RuntimeError: no licence"),
    ("import sys; sys.exit('bye')\nTARGETS = ()", "", "SystemExit: bye"),
    ("import absent_module_of_test\nTARGETS = ()", "", "absent_module_of_test"),
    ("# TARGETS is not there", "", "AttributeError"),
    ("TARGETS = 3", "", "int"),
    ("TARGETS = ()", "", "nothing in it"),
    (target("x").replace("name=name", "name=name, rates={}"), "", "rates: bandwidth is missing"),
    (target("UPPER"), "", "lower-case"),
    (target("x", "x"), "", "target 'x', twice"),
    (target("cpu"), "", "target 'cpu'"),
    (target("cpu-avx2"), "", "target 'cpu-avx2'"),
    (kernel("k", "k").replace('"cpu"', '"tpu"'), 'KERNEL(k, "") {}', "family 'tpu' has no target"),
    (kernel("k", "k"), "", "is not a file"),
    (kernel("k", "k"), "// nothing", "no source of it has KERNEL(k, ...)"),
    (kernel("native.add", "k"), 'KERNEL(k, "") {}', "kernel 'native.add' of cpu"),
    (kernel("k", "add"), 'KERNEL(add, "") {}', "native function 'add'"),
    (kernel("k", "k").replace("0.5", "2.0"), 'KERNEL(k, "") {}', "efficiency 2.0"),
)


@pytest.mark.parametrize(("text", "source", "said"), BROKEN, ids=[said for *_, said in BROKEN])
def test_a_broken_plugin_is_named_and_does_not_break_others(install: Installer, text: str, source: str, said: str) -> None:
    install("good", target("good"))
    install("bad-one", text, source)
    found = find()
    assert list(found.targets) == ["good"]
    (error,) = found.refused
    assert error.what.startswith("plugin bad-one is not used") and said in error.got and "pip uninstall bad-one" in error.fix


def test_all_who_share_a_name_are_refused(install: Installer) -> None:
    install("a-first", target("shared", "own"))
    install("b-second", target("shared"))
    install("c-third", target("other"))
    found = find()
    assert list(found.targets) == ["other"]
    assert [error.where for error in found.refused] == ["distribution a-first", "distribution b-second"]
    assert "target 'shared', also in b-second" in found.refused[0].got
