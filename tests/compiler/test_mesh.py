"""What users ask of several devices, as a mesh and as pins."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenspeed.compiler.mesh import AXES, mesh_of, ranks_of
from tokenspeed.compiler.placement_file import read_placement
from tokenspeed.passes.placing.pins import Pin
from tokenspeed.plans.errors import UsageError


@pytest.mark.parametrize(
    ("target", "parallel", "ranks"),
    [
        *(("h200", "auto", 1), ("h200:8", "auto", 8), ("cpu", "tp=2", 2), ("cpu:2", "tp=2", 2), ("h200:1", "tp=1", 1)),
        *(("cpu", "pp=1,tp=2", 2), ("cpu", "ep=1", 1)),
    ],
)
def test_meshes(target: str, parallel: str, ranks: int) -> None:
    mesh = mesh_of(target, parallel)
    assert [axis.name for axis in mesh] == ["tp"] and ranks_of(mesh) == ranks


@pytest.mark.parametrize(
    ("target", "parallel", "where"),
    [
        *(("h200:0", "auto", "--target"), ("h200:x", "auto", "--target"), ("h200:-2", "auto", "--target")),
        *(("h200:4", "tp=2", "--parallel"), ("h200", "zp=2", "--parallel"), ("h200", "tp", "--parallel")),
        *(("h200", "tp=2,tp=2", "--parallel"), ("h200", "tp=99999", "--parallel"), ("h200", "", "--parallel")),
    ],
)
def test_what_is_no_mesh(target: str, parallel: str, where: str) -> None:
    with pytest.raises(UsageError) as refused:
        mesh_of(target, parallel)
    assert refused.value.where == where and refused.value.expected


def test_axes_that_nothing_lays_out_yet_are_named() -> None:
    for axis in AXES:
        if axis.works:
            assert mesh_of("cpu", f"{axis.name}=2")[0].name == axis.name
            continue
        with pytest.raises(UsageError, match=f"along {axis.name} yet") as refused:
            mesh_of("cpu", f"{axis.name}=2")
        assert "tp" in str(refused.value.expected)


def test_placement_files(tmp_path: Path) -> None:
    path = tmp_path / "layout.toml"
    path.write_text('[[pin]]\nmodule = "*"\nweight = "cut"\n[[pin]]\nmodule = "lm_head"\nweight = "shard(0)"\n')
    assert read_placement(path) == (Pin("*", "cut"), Pin("lm_head", "shard(0)"))
    path.write_text('[[pin]]\nmodule = "*norm"\nrows = "cut"\n')
    assert read_placement(path) == (Pin("*norm", rows="cut"),)
    path.write_text('[[pin]]\nmodule = "lm_head"\nweight = "replicate"\naxis = "ep"\n')
    assert read_placement(path) == (Pin("lm_head", "replicate", axis="ep"),)


@pytest.mark.parametrize(
    "text",
    [
        "[[pin]",
        '[[pin]]\nmodule = "*"\n',
        '[[pin]]\nmodule = "*"\nweight = "diagonal"\n',
        '[[pin]]\nmodule = "*"\nrows = "diagonal"\n',
        '[[pin]]\nmodule = "*"\nweight = "cut"\naxis = "pp"\n',
        '[[pin]]\nmodule = "*"\nweight = "cut"\nbias = "cut"\n',
        '[[pins]]\nmodule = "*"\nweight = "cut"\n',
        "\udcff",
    ],
)
def test_what_is_no_placement_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "layout.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError) as refused:
        read_placement(path)
    assert str(path) in refused.value.where
