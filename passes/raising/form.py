"""How a value of flat rows stood in ATen: where Hugging Face code kept its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import ClassVar

Shape = tuple[int | None, ...]


class Form:
    """A layout, one letter for each ATen dimension: `b` the batch of one, `t` tokens, `.` any other. Equal forms are one object.

    In `ts` such a value is [rows, ...]: tokens first, the batch dropped, the others in their order. Values without tokens have
    the layout `-` and stand in `ts` as in ATen: `WEIGHT` are those the plan stores, `STATIC` those made from them.
    """

    ROWS: ClassVar[Form]
    FLAT: ClassVar[Form]
    HEADS: ClassVar[Form]
    HEADS_FIRST: ClassVar[Form]
    IDS: ClassVar[Form]
    WEIGHT: ClassVar[Form]
    STATIC: ClassVar[Form]

    def __init__(self, layout: str) -> None:
        self.layout = layout

    def __repr__(self) -> str:
        return f"Form({self.layout!r})"

    @staticmethod
    @cache
    def of(layout: str) -> Form:
        """The form of a layout such as "bt..", for [1, tokens, heads, head_dim]."""
        if layout.count("t") != 1 or layout.find("b") > 0 or layout.strip("bt."):
            raise ValueError(f"no layout of one token dimension: {layout!r}")
        return Form(layout)

    @staticmethod
    def at(shape: Sequence[int | None], axis: int) -> Form:
        """The form of an ATen shape whose tokens are dimension `axis`; a leading dimension of one is the batch."""
        letters = ["."] * len(shape)
        letters[axis] = "t"
        if axis > 0 and shape[0] == 1:
            letters[0] = "b"
        return Form.of("".join(letters))

    @property
    def axis(self) -> int | None:
        """The ATen dimension of the tokens, None for values without tokens."""
        return None if self in {Form.WEIGHT, Form.STATIC} else self.layout.index("t")

    def rows_shape(self, shape: Sequence[int | None]) -> Shape:
        """The shape in `ts` of a value of this form and ATen shape."""
        if self.axis is None:
            return tuple(shape)
        return (None, *(size for letter, size in zip(self.layout, shape, strict=True) if letter == "."))


Form.FLAT = Form.of("t.")
Form.ROWS, Form.HEADS, Form.HEADS_FIRST, Form.IDS = map(Form.of, ("bt.", "bt..", "b.t.", "bt"))
Form.WEIGHT, Form.STATIC = Form("-"), Form("-")
