"""An HTTP application on a socket of the file system, in a thread and an event loop of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI

_BACKLOG = 4096  # connections; as many as HAProxy takes, so that none is refused
_LOOK_EVERY = 0.02  # seconds


class Listener:
    """`app` on `path`. The socket is there, and answers, once `start` has returned."""

    def __init__(self, app: FastAPI, path: Path) -> None:
        self._path = path
        self._server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="on",
                backlog=_BACKLOG,
                # HAProxy alone can connect, and says who asks.
                proxy_headers=True,
                forwarded_allow_ips="*",
                server_header=False,
            )
        )
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Begin to answer; RuntimeError when the application cannot start."""
        self._thread.start()
        while not self._server.started:
            self._thread.join(_LOOK_EVERY)
            if not self._thread.is_alive():
                raise RuntimeError(f"The HTTP application on {self._path} did not start.")

    async def call(self, work: Callable[[], None]) -> None:
        """Have the application's event loop do `work`; raises what it raises."""

        async def there() -> None:
            work()

        assert self._server.loop is not None
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), self._server.loop))

    def stop(self, *, within: float) -> None:
        """Take no more connections, and wait for the running answers, `within` seconds at most."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(within)
        self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        with socket.socket(socket.AF_UNIX) as listening:
            # A name of its own until it listens: a predecessor's socket is replaced, never shared.
            own = self._path.with_suffix(f".{os.getpid()}")
            listening.bind(str(own))
            listening.listen(_BACKLOG)
            os.replace(own, self._path)
            self._server.run(sockets=[listening])


class _Server(uvicorn.Server):
    loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().serve(sockets)
