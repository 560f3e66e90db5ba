"""The matcher itself: what it accepts, and that it can fail."""

from __future__ import annotations

import pytest

from .matcher import CheckFailed, check_text, read_checks

OUTPUT = "alpha %1\n  beta   %2\ngamma(%2) {x = 3}\ndelta\n"


@pytest.mark.parametrize(
    "checks",
    [
        "// CHECK: alpha",
        "// CHECK: alpha\n// CHECK: delta",
        "// CHECK: alpha\n// CHECK-NEXT: beta %2",
        "// CHECK: gamma\n// CHECK-SAME: x = {{[0-9]+}}",
        "// CHECK: beta [[V:%[0-9]+]]\n// CHECK-NEXT: gamma([[V]])",
        "// CHECK: alpha\n// CHECK-NOT: epsilon\n// CHECK: delta\n// CHECK-NOT: alpha",
    ],
)
def test_accepts(checks: str) -> None:
    check_text(checks, OUTPUT)


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ("// CHECK: epsilon", "was not found"),
        ("// CHECK: delta\n// CHECK: alpha", "was not found"),
        ("// CHECK: alpha\n// CHECK-NEXT: gamma", "NEXT"),
        ("// CHECK: alpha\n// CHECK-SAME: beta", "SAME"),
        ("// CHECK: alpha\n// CHECK-NOT: beta\n// CHECK: delta", "is there: 'beta'"),
        ("// CHECK: alpha\n// CHECK-NOT: delta", "is there"),
        ("// CHECK: alpha [[V:%[0-9]+]]\n// CHECK: gamma([[V]])", "was not found"),
        ("// CHECK: x = {{[a-z]}}}", "was not found"),
    ],
)
def test_refuses(checks: str, message: str) -> None:
    with pytest.raises(CheckFailed, match=message):
        check_text(checks, OUTPUT)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("module {}", "nothing is checked"),
        ("// CHECK-NOT: a", "nothing is checked"),
        ("// CHECK-NXT: a", "line 1 is no check"),
        ("// CHECK-NEXT: a", "nothing was matched before"),
    ],
)
def test_broken_checks_are_errors_not_passes(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_checks(source)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(ValueError, match="was not matched before"):
        check_text("// CHECK: [[V]]", OUTPUT)
