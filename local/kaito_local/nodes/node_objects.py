"""What the launcher of nodes asks of the API server: is a Node Ready, and remove a dead one with its Pods."""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from kaito_local.errors import StartError

_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class NodeObjects:
    """The Node objects of one cluster, seen by its administrator, whose certificate lies in ``pki``.

    An API server that does not answer is asked again for half a minute; then StartError.
    """

    url: str
    pki: Path

    def ready(self, name: str) -> bool:
        """Whether the Node exists and is Ready."""
        node = self._request("GET", f"/api/v1/nodes/{quote(name)}")
        conditions = (node or {}).get("status", {}).get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def cordon(self, name: str) -> None:
        """Nothing more is scheduled onto it; no error if it does not exist."""
        self._request("PATCH", f"/api/v1/nodes/{quote(name)}", {"spec": {"unschedulable": True}})

    def relabel(self, name: str, labels: Mapping[str, str | None]) -> None:
        """Changes labels, None takes one off; no error if it does not exist."""
        self._request("PATCH", f"/api/v1/nodes/{quote(name)}", {"metadata": {"labels": dict(labels)}})

    def delete(self, name: str) -> None:
        """Deletes the Node, then its Pods without grace.

        The Pods of a Node that is gone would otherwise be shown as running for most of a minute, until the garbage
        collector comes.
        """
        self._request("DELETE", f"/api/v1/nodes/{quote(name)}")
        selector = urlencode({"fieldSelector": f"spec.nodeName={name}"})
        pods = (self._request("GET", f"/api/v1/pods?{selector}") or {}).get("items", [])
        for pod in pods:
            meta = pod["metadata"]
            path = f"/api/v1/namespaces/{quote(meta['namespace'])}/pods/{quote(meta['name'])}"
            options = {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}}
            self._request("DELETE", path, options)

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """The answer; None for 404 and 409 (another object of that name). Raises StartError."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                status, answer = self._exchange(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                status, answer = 0, {"message": str(error)}
            if 200 <= status < 300:
                return answer
            if status in (404, 409):
                return None
            if status not in (0, 429, 500, 502, 503, 504) or time.monotonic() > deadline:
                raise StartError(f"the API server refuses {method} {path}: {answer.get('message')} (status {status})")
            time.sleep(0.2)

    def _exchange(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
        context = ssl.create_default_context(cafile=str(self.pki / "ca.crt"))
        context.load_cert_chain(self.pki / "admin.crt", self.pki / "admin.key")
        address = urlsplit(self.url)
        connection = http.client.HTTPSConnection(address.hostname or "", address.port, timeout=10, context=context)
        try:
            kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
            data = None if body is None else json.dumps(body)
            connection.request(method, path, body=data, headers={"Content-Type": kind, "Accept": "application/json"})
            response = connection.getresponse()
            text = response.read()
            try:
                answer: dict[str, Any] = json.loads(text)
            except ValueError:
                answer = {"message": text.decode(errors="replace")}
            return response.status, answer
        finally:
            connection.close()
