"""Fixtures: the fake driver, as CUDA and as HIP, and a device of it. Each test ends with nothing called wrongly or held."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tokenspeed.runtime.device.device import Device

from .fake_driver import FakeDriver, Vendor, build


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> FakeDriver:
    return build(tmp_path_factory.mktemp("fake-driver"))


@pytest.fixture(params=["cuda", "hip"])
def vendor(request: pytest.FixtureRequest) -> Vendor:
    return request.param


@pytest.fixture
def fake(library: FakeDriver, vendor: Vendor) -> Iterator[FakeDriver]:
    library.reset(vendor)
    yield library
    assert library.problem == "" and library.held == 0


@pytest.fixture
def device(fake: FakeDriver) -> Iterator[Device]:
    opened = fake.device()
    yield opened
    opened.close()
