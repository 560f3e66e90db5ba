"""A device is opened ahead of its use, and what goes wrong then is left to its use."""

from __future__ import annotations

import pytest
from tokenspeed.runtime.device import opening
from tokenspeed.runtime.device.driver import Driver

from .fake_driver import FakeDriver


def opened(monkeypatch: pytest.MonkeyPatch, fake: FakeDriver) -> list[str]:
    driver = Driver.open(fake.vendor, (fake.path,))
    monkeypatch.setattr(Driver, "open", lambda _vendor: driver)
    opening.open_device(fake.vendor)
    return fake.log()


def test_the_context_is_made(monkeypatch: pytest.MonkeyPatch, fake: FakeDriver) -> None:
    made = {"cuda": "retain context of 7", "hip": "set device 7"}[fake.vendor]
    assert opened(monkeypatch, fake)[-1] == made


def test_a_failure_is_not_told(monkeypatch: pytest.MonkeyPatch, fake: FakeDriver) -> None:
    fake.fail(2, 304)  # after the driver's initialisation
    assert opened(monkeypatch, fake)[-1].startswith("device")
