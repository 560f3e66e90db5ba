"""Which ranks Ray is asked for together."""

from __future__ import annotations

import pytest
from tokenspeed.plans.errors import UsageError
from tokenspeed.plans.schema import MeshAxis
from tokenspeed.runtime.ray_placement import DEVICE, RankGroup, rank_groups


def groups(mesh: dict[str, int], hosts: list[int]) -> list[tuple[tuple[int, ...], str]]:
    found = rank_groups(tuple(MeshAxis(name=name, size=size) for name, size in mesh.items()), hosts, DEVICE)
    return [(group.ranks, group.strategy) for group in found]


def test_all_on_one_host_where_they_fit() -> None:
    assert groups({"tp": 4}, [4]) == groups({"pp": 2, "tp": 2}, [2, 8]) == [((0, 1, 2, 3), "STRICT_PACK")]
    assert rank_groups((MeshAxis(name="tp", size=1),), [1], DEVICE) == [RankGroup((0,), "STRICT_PACK")]


def test_stages_on_hosts_of_their_own() -> None:
    assert groups({"pp": 2, "tp": 4}, [4, 4]) == [((0, 1, 2, 3), "STRICT_PACK"), ((4, 5, 6, 7), "STRICT_PACK")]
    assert [ranks for ranks, _ in groups({"pp": 2, "dp": 2, "tp": 2}, [3, 3, 3, 3])] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert [ranks for ranks, _ in groups({"pp": 2, "dp": 2, "tp": 2}, [4, 4])] == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_one_group_where_the_innermost_axis_fits_no_host() -> None:
    assert groups({"tp": 4}, [2, 2]) == [((0, 1, 2, 3), "PACK")]
    assert groups({"pp": 2, "tp": 3}, [4, 2]) == [((0, 1, 2, 3, 4, 5), "PACK")]


def test_too_few_devices_are_refused() -> None:
    with pytest.raises(UsageError) as refused:
        groups({"tp": 8}, [4, 2])
    assert refused.value.expected == "8 GPU, one for each rank" and refused.value.got == "6 on 2 hosts"
