"""The HTTP endpoints of a controller: /healthz, /livez, /readyz and /metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from email.message import Message
from urllib.parse import SplitResult

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from kaito_hooks.runtime.http_server import BoundedHTTPServer, Page

logger = logging.getLogger(__name__)

Check = Callable[[], str | None]
"""What is wrong, or None."""
Route = Callable[["Message[str, str]"], Page]
"""From the request's headers to the answer."""


def health_page(checks: Callable[[], Mapping[str, Check]]) -> Route:
    """200 "ok" when every check has nothing to say, else 503 with one line per complaint."""

    def answer(_: Message[str, str]) -> Page:
        complaints = []
        for name, check in checks().items():
            try:
                problem = check()
            except Exception as error:
                logger.exception("health check %s failed", name)
                problem = f"the check itself failed: {error}"
            if problem:
                complaints.append(f"{name}: {problem}")
        body = "\n".join(complaints or ["ok"]) + "\n"
        return Page(503 if complaints else 200, "text/plain; charset=utf-8", body.encode())

    return answer


def metrics_page(registry: CollectorRegistry) -> Route:
    """All series of the registry, in the format that the scraper asks for."""

    def answer(headers: Message[str, str]) -> Page:
        encode, content_type = choose_encoder(headers.get("Accept", ""))
        return Page(200, content_type, encode(registry))

    return answer


class Endpoints(BoundedHTTPServer):
    """Serves fixed paths, whatever their query."""

    def __init__(self, address: str, port: int, routes: Mapping[str, Route]) -> None:
        def answer(url: SplitResult, headers: Message[str, str]) -> Page:
            route = routes.get(url.path)
            return route(headers) if route else Page(404, "text/plain", b"not found\n")

        super().__init__(address, port, answer)
