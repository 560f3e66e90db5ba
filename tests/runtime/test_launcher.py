"""What a launcher's environment says of this process's rank."""

from __future__ import annotations

import pytest
from tokenspeed.plans.errors import UsageError
from tokenspeed.plans.schema import MeshAxis
from tokenspeed.runtime.launcher import Launched, launched

from ..plans.sample_plan import sample_manifest

TWO = sample_manifest(mesh=(MeshAxis(name="tp", size=2),))
SAID = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


def test_nobody_launched_it() -> None:
    assert launched(TWO, {}) is None
    assert launched(sample_manifest(), SAID) is None


def test_a_launchers_rank() -> None:
    assert launched(TWO, SAID) == Launched(1, 1, 2, "node0:29500", False)
    assert launched(TWO, SAID | {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}) == Launched(
        1, 0, 1, "node0:29500", True, (1,)
    )


def test_ranks_of_a_host_may_be_listed() -> None:
    found = launched(TWO, SAID | {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "TOKENSPEED_HOST_RANKS": "0,1"})
    assert found is not None and found.beside == (0, 1)


def test_another_number_of_processes_is_refused() -> None:
    with pytest.raises(UsageError) as refused:
        launched(TWO, SAID | {"WORLD_SIZE": "3"})
    assert refused.value.expected == "2" and refused.value.got == "3"
