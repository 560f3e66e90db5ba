"""Operations of several ranks: collectives, what stages hand on, halves of the rows that take turns with them."""

from .mlir import ext, ir
from .operations import Operand, Result, TsDialect, verify


class AllReduce(TsDialect.Operation, name="all_reduce", traits=[ext.Pure]):
    """Sum over the `ranks` ranks of mesh axis `axis`: partial -> replicate."""

    verify_invariants = verify
    res: Result
    x: Operand
    axis: ir.StringAttr
    ranks: ir.IntegerAttr


class AllGather(TsDialect.Operation, name="all_gather", traits=[ext.Pure]):
    """The parts that the `ranks` ranks of mesh axis `axis` have of dimension `dimension`, behind each other: shard -> replicate.

    Zeros that fill up the last parts are at the end of the result, but for those of rows, which go.
    """

    verify_invariants = verify
    res: Result
    x: Operand
    axis: ir.StringAttr
    dimension: ir.IntegerAttr
    ranks: ir.IntegerAttr


class ReduceScatter(TsDialect.Operation, name="reduce_scatter", traits=[ext.Pure]):
    """The sum over the `ranks` ranks of mesh axis `axis`, of which each gets its part of dimension `dimension`: partial -> shard.

    Rows are filled up with zeros where ranks do not divide them.
    """

    verify_invariants = verify
    res: Result
    x: Operand
    axis: ir.StringAttr
    dimension: ir.IntegerAttr
    ranks: ir.IntegerAttr


class TakePart(TsDialect.Operation, name="take_part", traits=[ext.Pure]):
    """This rank's part of what all `ranks` ranks of mesh axis `axis` have, along dimension `dimension`: replicate -> shard.

    Nothing is sent. Rows are filled up with zeros where ranks do not divide them.
    """

    verify_invariants = verify
    res: Result
    x: Operand
    axis: ir.StringAttr
    dimension: ir.IntegerAttr
    ranks: ir.IntegerAttr


class Dispatch(TsDialect.Operation, name="dispatch", traits=[ext.Pure]):
    """As all_gather of rows, but each is sent only to the ranks of mesh axis `axis` that have experts it goes to.

    indices[rows, k] are of all rows, `experts` is how many the ranks share out in order. Other rows of the result are undefined:
    part -> dispatched.
    """

    verify_invariants = verify
    res: Result
    x: Operand
    indices: Operand
    axis: ir.StringAttr
    dimension: ir.IntegerAttr
    ranks: ir.IntegerAttr
    experts: ir.IntegerAttr


class Combine(TsDialect.Operation, name="combine", traits=[ext.Pure]):
    """As reduce_scatter of rows, but each comes only from the ranks that have experts it went to, as in dispatch.

    It is of what experts made: rows that went to none of a rank's are zero there. partial -> part.
    """

    verify_invariants = verify
    res: Result
    x: Operand
    indices: Operand
    axis: ir.StringAttr
    dimension: ir.IntegerAttr
    ranks: ir.IntegerAttr
    experts: ir.IntegerAttr


class Send(TsDialect.Operation, name="send"):
    """Hands x on to the rank behind this one along mesh axis `axis`, which receives it as value `sym`."""

    verify_invariants = verify
    x: Operand
    sym: ir.StringAttr
    axis: ir.StringAttr


class Receive(TsDialect.Operation, name="receive"):
    """What the rank before this one along mesh axis `axis` sends as value `sym`: in the order of its sends, of the same types."""

    verify_invariants = verify
    res: Result
    sym: ir.StringAttr
    axis: ir.StringAttr


class TakeRows(TsDialect.Operation, name="take_rows", traits=[ext.Pure]):
    """The first half of the rows (`half` 0; one row more than the other where they do not divide) or the second (1)."""

    verify_invariants = verify
    res: Result
    x: Operand
    half: ir.IntegerAttr


class JoinRows(TsDialect.Operation, name="join_rows", traits=[ext.Pure]):
    """The two halves of rows, one behind the other."""

    verify_invariants = verify
    res: Result
    first: Operand
    second: Operand
