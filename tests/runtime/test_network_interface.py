"""Which interface leads where."""

from __future__ import annotations

from tokenspeed.runtime.network_interface import interface_towards


def test_this_machine_is_reached_by_the_loopback() -> None:
    assert interface_towards("127.0.0.1") == interface_towards("localhost") == "lo"


def test_a_host_that_does_not_exist_is_reached_by_none() -> None:
    assert interface_towards("no-such-host.invalid") is None
