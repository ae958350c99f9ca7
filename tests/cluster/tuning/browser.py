"""A real browser without a window, driven over its own protocol: what it shows, what it asks for, what it complains of.

https://chromedevtools.github.io/devtools-protocol/: JSON documents, each ended by a zero byte, through two pipes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ROOT


def program() -> str:
    """Debian's Chromium, installed if this machine can; skips the test with the reason where it cannot."""
    installed = subprocess.run(
        [ROOT / "local" / "packages.sh", "chromium"], capture_output=True, text=True, check=False
    )
    found = shutil.which("chromium")
    if found is None:
        pytest.skip(f"there is no chromium to look with: {installed.stderr.strip()}")
    return found


class Browser:
    """One page."""

    def __init__(self, program: str, folder: Path) -> None:
        for_it, ours_to_write = os.pipe()
        ours_to_read, from_it = os.pipe()
        options = [
            "--headless",
            "--disable-gpu",
            "--no-first-run",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}",
        ]
        # Its sandbox wants a user of its own; only pages of the test are looked at.
        options += ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", f'exec "$@" 3<&{for_it} 4>&{from_it}', "bash", program, *options],
                pass_fds=(for_it, from_it),
                stdout=log,
                stderr=log,
            )
        os.close(for_it)
        os.close(from_it)
        self._out, self._in = os.fdopen(ours_to_write, "wb", buffering=0), os.fdopen(ours_to_read, "rb")
        self._number = 0
        self._session: dict[str, str] = {}
        self.asked: list[str] = []
        self.complaints: list[str] = []
        target = self._do("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self._do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Network", "Log", "Runtime", "Page"):
            self._do(f"{domain}.enable")

    def open(self, url: str) -> None:
        self._do("Page.navigate", url=url)

    def value(self, expression: str) -> Any:
        """Of a JavaScript expression on the page."""
        return self._do("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._out.close()
        self._in.close()

    def _do(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        document = {"id": self._number, "method": method, "params": params, **self._session}
        self._out.write(json.dumps(document).encode() + b"\0")
        while True:
            said = self._read()
            if said.get("id") == self._number:
                assert "error" not in said, said["error"]
                result: dict[str, Any] = said["result"]
                return result
            self._note(said)

    def _read(self) -> dict[str, Any]:
        data = bytearray()
        while not data.endswith(b"\0"):
            data += self._in.read(1) or pytest.fail("the browser has ended")
        said: dict[str, Any] = json.loads(data[:-1])
        return said

    def _note(self, said: dict[str, Any]) -> None:
        params = said.get("params", {})
        if said.get("method") == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif said.get("method") == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])
        elif said.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"]["text"])
