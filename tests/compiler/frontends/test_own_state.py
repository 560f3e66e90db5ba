"""States that parts keep outside of transformers' cache: found, and made arguments and results of a step."""

from __future__ import annotations

import torch
from tokenspeed.compiler.frontends.own_state import OwnState, StepOfOwnState, call_with_state, parts_with_state, watch_state
from torch import Tensor, nn


class _Sum(nn.Module):
    """Gives back the sum of all tokens so far, in an attribute."""

    __module__ = "transformers.models.of_this_test"

    def __init__(self) -> None:
        super().__init__()
        self.total: Tensor | None = None

    def _setup_cache(self) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        self.total = x if self.total is None else self.total + x
        return self.total


class _Last(nn.Module):
    """Gives back the token before, one of three states of all layers."""

    __module__ = "transformers.models.of_this_test"

    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer_id = number

    def forward(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        before = state[1][:, :, self.layer_id].clone()
        state[1][:, :, self.layer_id] = x[:, 0]
        return before[:, None], state


class _Layer(nn.Module):
    __module__ = "transformers.models.of_this_test"

    def __init__(self, number: int, parts: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_Last(number) for _ in range(parts))

    def forward(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        for part in self.parts:
            x, state = part(x, state)
        return x, state


def _noted(part: nn.Module, *arguments: object) -> OwnState:
    noted: list[OwnState] = []
    hooks = watch_state(part, noted.append)
    part(*arguments)
    for hook in hooks:
        hook.remove()
    return noted[0]


def test_a_layer_with_several_parts_is_one() -> None:
    model = nn.ModuleDict({"one": _Layer(0, 1), "two": _Layer(1, 2), "none": nn.Linear(2, 2), "sum": _Sum()})
    assert [path for path, _ in parts_with_state(model)] == ["one.parts.0", "two", "sum"]


def test_states_in_attributes() -> None:
    part = _Sum()
    own = _noted(part, torch.ones(1, 1, 2))
    assert own.places == [("module", "total")] and own.results == 0
    out, new = call_with_state(part, own, [torch.full((3, 1, 2), 2.0)], [torch.full((3, 1, 2), 5.0)])
    assert out.eq(7).all() and new.eq(7).all() and out.shape == (3, 1, 2) and part.total is None


def test_states_that_are_a_layer_of_an_argument() -> None:
    part = _Last(1)
    own = _noted(part, torch.ones(1, 1, 2), [torch.zeros(1, 2, 4) for _ in range(3)])
    assert own.places == [(1, 1)] and own.results == 2 and own.states[0].shape == (1, 2, 1)
    out, new = call_with_state(part, own, [torch.full((3, 1, 2), 2.0)], [torch.full((3, 2, 1), 5.0)])
    assert out.eq(5).all() and new.eq(2).all() and new.shape == (3, 2, 1) and part.layer_id == 1


def test_rows_that_begin_start_from_the_first_numbers() -> None:
    part = _Last(0)
    own = _noted(part, torch.ones(1, 1, 2), [torch.zeros(1, 2, 4) for _ in range(3)])
    begun = torch.tensor([[0.0], [1.0]])
    out, new, after = StepOfOwnState(part, own, [-3.0])([torch.ones(2, 1, 2)], [torch.full((2, 2, 1), 5.0), begun])
    assert out[0].eq(-3).all() and out[1].eq(5).all() and new.eq(1).all() and after.eq(1).all()
