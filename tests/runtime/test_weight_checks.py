"""Who hashes what: a rank what it reads, and ranks of one host share that out; nothing that is read goes unchecked."""

from __future__ import annotations

import itertools

import pytest
from tokenspeed.plans import digests, rank_reads
from tokenspeed.plans.digests import with_digests
from tokenspeed.plans.errors import WeightsError
from tokenspeed.plans.recipe import Cast, Concat, Part, Recipe, Source, Stretch
from tokenspeed.plans.schema import MeshAxis, SourceTensor, Weight
from tokenspeed.runtime import weight_checks
from tokenspeed.runtime.mesh import Rank
from tokenspeed.runtime.weight_checks import Shares, digest_checks

CHUNK = 64
ROWS, COLUMNS = 16, 8  # of f32: two rows are a chunk, eight chunks
MESH = (MeshAxis(name="tp", size=4),)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (digests, rank_reads, weight_checks):
        monkeypatch.setattr(module, "DIGEST_CHUNK_BYTES", CHUNK)


def data(name: str) -> memoryview:
    return memoryview(bytes((number * len(name)) % 251 for number in range(ROWS * COLUMNS * 4)))


def sources() -> dict[str, SourceTensor]:
    names = [f"{name}.{layer}" for name in ("a", "bb") for layer in range(2)]
    made = (SourceTensor(name=name, encoding="F32", shape=(ROWS, COLUMNS), bytes=ROWS * COLUMNS * 4) for name in names)
    return {source.name: with_digests(source, data(source.name)) for source in made}


def cut(recipe: Recipe, dimension: int, size: int) -> Part:
    return Part(recipe, "tp", dimension, (Stretch(0, size, size // 4),))


def weight(recipe: Recipe) -> tuple[Weight, list[int]]:
    return Weight(name="w.{i}", shape=(1,), dtype="f32", bytes=4, recipe=recipe, layers=(0, 1)), [0, 1]


BY_ROWS = weight(cut(Cast(Source("a.{i}"), "f32"), 0, ROWS))
BY_COLUMNS = weight(cut(Source("bb.{i}"), 1, COLUMNS))
BOTH_JOINED = weight(Concat((cut(Source("a.{i}"), 0, ROWS), Source("bb.{i}")), 0))


def test_a_rank_alone_checks_what_it_reads() -> None:
    found = sources()
    by_rows = Shares(Rank(MESH, 2), [BY_ROWS], found)
    assert by_rows.of(found["a.0"]) == by_rows.of(found["a.1"]) == [4, 5]
    assert Shares(Rank(MESH, 2), [BY_COLUMNS], found).of(found["bb.0"]) == list(range(8))
    joined = Shares(Rank(MESH, 0), [BOTH_JOINED], found)
    assert (joined.of(found["a.0"]), joined.of(found["bb.1"])) == ([0, 1], list(range(8)))


@pytest.mark.parametrize("beside", [(0, 1, 2, 3), (0, 1)])
def test_ranks_of_a_host_check_each_chunk_once(beside: tuple[int, ...]) -> None:
    found = sources()
    shares = [Shares(Rank(MESH, number, beside), [BY_ROWS, BY_COLUMNS], found) for number in beside]
    for name, read in (("a.0", range(2 * len(beside))), ("a.1", range(2 * len(beside))), ("bb.0", range(8)), ("bb.1", range(8))):
        assert sorted(itertools.chain(*(share.of(found[name]) for share in shares))) == list(read)
    assert all(len(share.of(found["bb.0"])) == 8 // len(beside) for share in shares)


def test_ranks_of_other_stages_are_no_help() -> None:
    """They load other weights."""
    mesh = (MeshAxis(name="pp", size=2), MeshAxis(name="tp", size=2))
    assert Rank(mesh, 1, (0, 1, 2, 3)).neighbours == [{"pp": 0, "tp": 0}, {"pp": 0, "tp": 1}]


def test_a_wrong_chunk_is_named() -> None:
    source = sources()["a.0"]
    wrong = bytearray(data("a.0"))
    wrong[5 * CHUNK] ^= 1
    for check in digest_checks(source, memoryview(wrong), [0, 4, 7]):
        check()
    (check,) = digest_checks(source, memoryview(wrong), [5])
    with pytest.raises(WeightsError, match=r"a\.0"):
        check()


def test_a_plan_without_digests_of_chunks_has_whole_tensors_checked() -> None:
    found = {
        name: SourceTensor(**{field: getattr(source, field) for field in ("name", "encoding", "shape", "bytes", "digest")})
        for name, source in sources().items()
    }
    shares = [Shares(Rank(MESH, number, (0, 1, 2, 3)), [BY_ROWS], found) for number in range(4)]
    assert sorted(len(share.of(found["a.0"])) for share in shares) == [0, 0, 0, 1]
    (check,) = digest_checks(found["a.0"], data("a.0"), [0])
    check()
