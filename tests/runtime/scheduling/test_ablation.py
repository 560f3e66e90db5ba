"""Each feature of the policy can be turned off by its name, alone."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from tokenspeed.plans.errors import UsageError
from tokenspeed.runtime.scheduling.ablation import FEATURES, POLICIES, without
from tokenspeed.runtime.scheduling.policy import AGENTIC, PLAIN


def test_one_feature_or_all() -> None:
    assert {"swap", "retention", "session_admission", "chunk_by_cost"} <= set(FEATURES)
    for name in FEATURES:
        changed = {field for field, value in asdict(without(AGENTIC, [name])).items() if value != asdict(AGENTIC)[field]}
        assert changed == {name}
    assert without(AGENTIC, FEATURES) == PLAIN == POLICIES["plain"]
    assert without(PLAIN, FEATURES) == PLAIN and without(AGENTIC, []) == AGENTIC


def test_another_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"no_such_feature") as caught:
        without(AGENTIC, ["no_such_feature"])
    assert "session_admission" in str(caught.value)
