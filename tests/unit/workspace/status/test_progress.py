"""Asking a Pod how far it is: an honest answer, none, or one that never ends."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.eventually import PATIENCE

from kaito_hooks.workspace.status.progress import fetch

ANSWERS = {
    "good": json.dumps({"phase": "Training"}),
    "list": "[]",
    "broken": "{",
    "deep": '{"phase": ' + "[" * 20000 + "]" * 20000 + "}",
    "digits": '{"epoch": ' + "9" * 5000 + "}",
}


@pytest.fixture
def answering(request: pytest.FixtureRequest) -> Iterator[int]:
    kind = request.param
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            while kind == "slow header" and not over.wait(0.05):
                self.wfile.write(b"H")
            self.send_response(500 if kind == "error" else 200)
            self.end_headers()
            if kind == "drip":
                while not over.wait(0.05):
                    self.wfile.write(b" ")
            self.wfile.write(ANSWERS.get(kind, "{}").encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server.server_address[1]
    over.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("answering", ["good"], indirect=True)
def test_the_answer_is_read(answering: int) -> None:
    assert fetch("127.0.0.1", answering, limit=PATIENCE) == {"phase": "Training"}


@pytest.mark.parametrize("answering", ["list", "broken", "deep", "digits", "error"], indirect=True)
def test_what_is_no_progress_counts_as_no_answer(answering: int) -> None:
    assert fetch("127.0.0.1", answering, limit=PATIENCE) is None


@pytest.mark.parametrize("answering", ["drip", "slow header"], indirect=True)
def test_an_answer_that_drips_does_not_hold_the_controller(answering: int) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        fetch("127.0.0.1", answering, limit=0.3)
    assert time.monotonic() - began < PATIENCE


def test_nobody_there_counts_as_no_answer() -> None:
    assert fetch("127.0.0.1", 1, limit=0.3) is None
