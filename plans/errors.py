"""The one error a user sees: what went wrong, where, what was expected, what was found, and the next command."""

from __future__ import annotations


class TokenspeedError(Exception):
    """An error with everything a user needs to mend it; command-line tools print it without a stack trace.

    `what` is one sentence; `where` names a file, entry, field or operation; `fix` is the next command or step.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", expected: str = "", got: str = "", fix: str = "") -> None:
        self.what, self.where, self.expected, self.got, self.fix = what, where, expected, got, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [self.what]
        for label, text in (("where", self.where), ("expected", self.expected), ("got", self.got), ("fix", self.fix)):
            if text:
                lines.append(f"  {label + ':':<10}{text}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, str]:
        """The same fields for `--json` output."""
        fields = {"error": type(self).__name__, "what": self.what, "where": self.where}
        fields |= {"expected": self.expected, "got": self.got, "fix": self.fix}
        return {name: text for name, text in fields.items() if text}


class PlanError(TokenspeedError):
    """The plan file is damaged, hostile, or of a format this runtime does not read."""

    exit_code = 3


class TargetMismatch(TokenspeedError):
    """The plan is sound but was compiled for another machine than this one."""

    exit_code = 4


class WeightsError(TokenspeedError):
    """The weights given do not belong to the plan, or are unreadable."""

    exit_code = 5


class ModelError(TokenspeedError):
    """The model cannot be compiled: unsupported type, broken files, or an operation that was not recognised."""

    exit_code = 6


class MemoryPlanError(TokenspeedError):
    """The planned memory does not fit the device; says by how much."""

    exit_code = 7


class UsageError(TokenspeedError):
    """A command was given options that cannot be honoured."""

    exit_code = 2
