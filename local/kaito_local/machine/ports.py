"""Free TCP ports on an address of this machine."""

from __future__ import annotations

import random
import socket

# Below Linux's range for outgoing connections (32768 and up), so that a port stays free while its server restarts.
_RANGE = range(20000, 32000)


def free_ports(count: int, *, address: str = "127.0.0.1") -> list[int]:
    """``count`` different ports on which nothing listens at the moment.

    Nothing reserves them: a caller whose server finds one taken asks again.
    """
    chosen: list[int] = []
    choose = random.SystemRandom()
    while len(chosen) < count:
        port = choose.choice(_RANGE)
        if port not in chosen and is_free(port, address=address):
            chosen.append(port)
    return chosen


def is_free(port: int, *, address: str = "127.0.0.1") -> bool:
    """Whether a server could listen on ``address:port`` right now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
