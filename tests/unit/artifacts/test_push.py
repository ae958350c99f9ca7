"""What is told while a push goes on."""

from __future__ import annotations

import socket

import pytest
import urllib3

from kaito_hooks.artifacts.push import State, progress_served


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6"))],
)
def test_the_progress_is_told_on_the_pod_s_address(host: str) -> None:
    state = State()
    with progress_served(state, host, 0) as port:
        state.say("the registry is down")
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        told = urllib3.request("GET", f"{url}/progress?x", retries=False).json()
        assert (told["phase"], told["reason"], told["message"]) == ("Pushing", "PushFailed", "the registry is down")
        assert urllib3.request("GET", f"{url}/else", retries=False).status == 404


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "no address"])
def test_a_push_goes_on_where_nobody_can_ask_for_it(host: str) -> None:
    with progress_served(State(), host, 0) as port:
        assert port is None
