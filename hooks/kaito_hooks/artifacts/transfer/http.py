"""Bounded HTTP: timeouts on every read, retries that end, downloads that resume where they broke off.

A body is streamed in chunks; memory does not grow with its size. A broken stream is continued with a Range request. If
the server ignores the range, a body that never changes is skipped forward to where it was; one that may have changed
meanwhile begins anew.
"""

from __future__ import annotations

import contextlib
import logging
import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import unquote, urljoin

import urllib3

from kaito_hooks.artifacts.errors import AccessDenied, ArtifactNotFound, Damaged, Unreachable
from kaito_hooks.artifacts.transfer.proxies import Proxies

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait (seconds) and how often to try again. A download that makes progress is never given up."""

    connect: float = 10.0
    read: float = 60.0
    tries: int = 4
    first_pause: float = 1.0
    longest_pause: float = 30.0

    def pause(self, failures: int, *, rng: random.Random) -> float:
        """Seconds before the next try after ``failures`` failures in a row, with jitter."""
        full = min(self.longest_pause, self.first_pause * 2.0 ** (failures - 1))
        return rng.uniform(full / 2, full)


@dataclass(slots=True)
class Transfer:
    """Pools of connections, one for each proxy. ``sleep`` and ``rng`` are injected so that tests need not wait.

    ``guard`` names the address to connect to for a host and port, or raises: what was checked is what is connected to,
    whatever the name resolves to a moment later. Only behind a proxy, which looks names up by itself, is it no more
    than a check, and a name that nobody here knows is left to the proxy.
    """

    tls: ssl.SSLContext
    patience: Patience = field(default_factory=Patience)
    sleep: Callable[[float], None] = time.sleep
    rng: random.Random = field(default_factory=random.Random)
    guard: Callable[[str, int], str] | None = None
    proxies: Proxies = field(default_factory=Proxies)
    _pools: dict[str | None, urllib3.PoolManager] = field(init=False, default_factory=dict)

    def get(
        self, url: str, *, headers: Mapping[str, str], limit: int, redirects: int = 5
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body (at most ``limit`` bytes) of one GET; tried again while the server is in trouble."""
        failures = 0
        while True:
            try:
                response = self._open(url, headers=headers, redirects=redirects)
                try:
                    body = response.read(limit + 1)
                finally:
                    response.close()
                if len(body) > limit:
                    raise ArtifactNotFound(
                        f"{origin(url)} answered with more than {limit} bytes where a small document belongs"
                    )
                if response.status not in (408, 429) and response.status < 500:
                    return response.status, response.headers, body
                problem = Unreachable(
                    f"{origin(url)} answered {response.status}", retry_after=_retry_after(response.headers)
                )
            except (urllib3.exceptions.HTTPError, OSError) as error:
                problem = Unreachable(f"{origin(url)} does not answer: {_cause(error)}")
            failures += 1
            self._wait(problem, failures)

    def stream(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        size: int | None,
        renew: Callable[[str], Mapping[str, str] | None] | None = None,
        restart: Callable[[], None] | None = None,
        redirects: int = 5,
    ) -> Iterator[bytes]:
        """The body's bytes, each once and in order, however often the connection breaks. ``size``: bytes, if known.

        ``renew`` answers a 401's challenge with other headers, because a token may expire before a long download ends;
        None from it, or a second 401 in a row, is final. Without ``restart`` the URL must always mean the same bytes.
        With it, only a part of the same version is added to what came before; ``restart`` is called when there is none:
        forget all, the body begins anew. Raises Damaged as soon as there are more than ``size`` bytes.
        """
        position = 0
        failures = 0
        furthest = 0
        renewed_at = -1
        version: Mapping[str, str] = {}
        while True:
            began = furthest
            try:
                resumed = _resumption(position, version=None if restart is None else version)
                response = self._open(url, headers={**headers, **resumed}, redirects=redirects)
                try:
                    if response.status in (408, 429) or response.status >= 500:
                        raise Unreachable(
                            f"{origin(url)} answered {response.status}", retry_after=_retry_after(response.headers)
                        )
                    if response.status == 401 and renew is not None and renewed_at != position:
                        fresh = renew(response.headers.get("WWW-Authenticate", ""))
                        if fresh is not None:
                            headers, renewed_at = fresh, position
                            continue
                    continues = response.status != 206 or _continues(response.headers, position, version=version)
                    if response.status == 416 or not continues:
                        version = {}
                        raise Unreachable(f"{origin(url)} answered with another part of the file than was asked for")
                    _refuse(url, response.status)
                    skip = position if response.status == 200 else 0
                    if restart is not None and response.status == 200:
                        if position:
                            restart()
                        position = skip = 0
                        version = _version(response.headers)
                    for chunk in response.stream(CHUNK, decode_content=False):
                        part = chunk[skip:] if skip else chunk
                        skip = max(0, skip - len(chunk))
                        if part:
                            position += len(part)
                            furthest = max(furthest, position)
                            if size is not None and position > size:
                                raise Damaged(f"{origin(url)} sends more than the {size} bytes that it announced")
                            yield part
                finally:
                    response.close()
                if size is None or position >= size:
                    return
                problem = Unreachable(f"{origin(url)} ended the transfer after {position} of {size} bytes")
            except Unreachable as error:
                problem = error
            except (urllib3.exceptions.HTTPError, OSError) as error:
                problem = Unreachable(f"the transfer from {origin(url)} broke off: {_cause(error)}")
            failures = 1 if furthest > began else failures + 1
            self._wait(problem, failures)

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | BinaryIO | None = None,
        limit: int = 1 << 20,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and the first ``limit`` bytes of the answer to one request that is never repeated here.

        Redirects are not followed. Raises Unreachable when there is no answer, or one of a server in trouble.
        """
        try:
            response = self._request(method, url, headers=headers, body=body)
            try:
                answer = response.read(limit)
            finally:
                response.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(f"{origin(url)} does not answer: {_cause(error)}") from error
        if response.status in (408, 429) or response.status >= 500:
            raise Unreachable(f"{origin(url)} answered {response.status}", retry_after=_retry_after(response.headers))
        return response.status, response.headers, answer

    def _open(self, url: str, *, headers: Mapping[str, str], redirects: int) -> urllib3.response.BaseHTTPResponse:
        asked, sent = origin(url), dict(headers)
        for _ in range(redirects + 1):
            response = self._request("GET", url, headers=sent)
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or not location:
                if origin(url) != asked:
                    # To answer this challenge would give the registry's password to its storage.
                    response.headers.discard("WWW-Authenticate")
                return response
            response.close()
            target = follow(url, location)
            if origin(target) != origin(url):
                # Credentials are for the host that asked for them, not for the storage that it points to.
                sent = {name: value for name, value in sent.items() if name.lower() != "authorization"}
            url = target
        raise Unreachable(f"{origin(url)} redirects in a circle")

    def _request(
        self, method: str, url: str, *, headers: Mapping[str, str], body: bytes | BinaryIO | None = None
    ) -> urllib3.response.BaseHTTPResponse:
        timeout = urllib3.Timeout(connect=self.patience.connect, read=self.patience.read)
        target = urllib3.util.parse_url(url)
        host, secure = (target.host or "").strip("[]"), target.scheme == "https"
        port = target.port or _PORTS["https" if secure else "http"]
        proxy = self.proxies.of(url)
        if self.guard is None or proxy:
            if self.guard is not None:
                with contextlib.suppress(Unreachable):
                    self.guard(host, port)
            return self._pool(proxy).request(
                method,
                url,
                headers=dict(headers),
                body=body,
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=False,
            )
        address = self.guard(host, port)
        pool: urllib3.HTTPConnectionPool
        if secure:
            pool = urllib3.HTTPSConnectionPool(
                address, port, ssl_context=self.tls, server_hostname=host, assert_hostname=host
            )
        else:
            pool = urllib3.HTTPConnectionPool(address, port)
        return pool.urlopen(
            method,
            target.request_uri,
            headers={"Host": target.netloc or "", **headers},
            body=body,
            timeout=timeout,
            retries=False,
            redirect=False,
            preload_content=False,
        )

    def _pool(self, proxy: str | None) -> urllib3.PoolManager:
        if proxy not in self._pools:
            self._pools[proxy] = self._new_pool(proxy)
        return self._pools[proxy]

    def _new_pool(self, proxy: str | None) -> urllib3.PoolManager:
        if proxy is None:
            return urllib3.PoolManager(ssl_context=self.tls, retries=False, maxsize=4)
        parsed = urllib3.util.parse_url(proxy)
        login = urllib3.make_headers(proxy_basic_auth=unquote(parsed.auth)) if parsed.auth else None
        return urllib3.ProxyManager(
            parsed._replace(auth=None).url,
            proxy_headers=login,
            ssl_context=self.tls,
            proxy_ssl_context=self.tls,
            retries=False,
            maxsize=4,
        )

    def _wait(self, problem: Unreachable, failures: int) -> None:
        if failures >= self.patience.tries:
            raise problem
        pause = max(self.patience.pause(failures, rng=self.rng), min(problem.retry_after or 0.0, 120.0))
        logger.warning("%s; trying again in %.1f s", problem, pause)
        self.sleep(pause)


def origin(url: str) -> str:
    """Scheme, host and port, the scheme's own port left out: what credentials are for, and what may be shown of a URL.

    Paths and queries may carry tokens. https://www.rfc-editor.org/rfc/rfc6454#section-4
    """
    parsed = urllib3.util.parse_url(url)
    port = "" if parsed.port in (None, _PORTS.get(parsed.scheme or "")) else f":{parsed.port}"
    return f"{parsed.scheme}://{parsed.host}{port}"


def follow(url: str, location: str) -> str:
    """The URL that ``location``, said by ``url``, names. Raises Unreachable if it is none, or gives up TLS."""
    try:
        target = urljoin(url, location)
        parsed = urllib3.util.parse_url(target)
    except ValueError:
        parsed = urllib3.util.Url()
    if parsed.scheme not in _PORTS or not parsed.host:
        raise Unreachable(f"{origin(url)} points to something that is no http or https URL")
    if parsed.scheme == "http" and origin(url).startswith("https:"):
        raise Unreachable(f"{origin(url)} points to {origin(target)}, without TLS")
    return target


def _version(headers: Mapping[str, str]) -> dict[str, str]:
    """What tells one version of a file from another byte for byte: a weak ETag does not."""
    found = {name: headers.get(name, "") for name in ("ETag", "Last-Modified")}
    return {name: value for name, value in found.items() if value and not value.startswith("W/")}


def _resumption(position: int, *, version: Mapping[str, str] | None) -> dict[str, str]:
    """The headers that ask for the rest; none where the version is not known. ``version`` None: there is only one.

    https://www.rfc-editor.org/rfc/rfc9110#section-13.1.5
    """
    if not position or version == {}:
        return {}
    conditional = {"If-Range": next(iter(version.values()))} if version else {}
    return {"Range": f"bytes={position}-", **conditional}


def _continues(headers: Mapping[str, str], position: int, *, version: Mapping[str, str]) -> bool:
    """Whether a partial answer begins where we stopped, in the version that we have the beginning of.

    A server that does not say where is believed if there is only one version (the digest tells).
    """
    content_range = headers.get("Content-Range", "").replace(" ", "")
    if version and any(version.get(name, value) != value for name, value in _version(headers).items()):
        return False
    return content_range.startswith(f"bytes{position}-") or not (content_range or version)


def _refuse(url: str, status: int) -> None:
    if status in (401, 403):
        raise AccessDenied(f"{origin(url)} refuses access ({status})")
    if status == 404:
        raise ArtifactNotFound(f"{origin(url)} does not have it (404)")
    if status not in (200, 206):
        raise Unreachable(f"{origin(url)} answered {status}")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    value = headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _cause(error: BaseException) -> str:
    if isinstance(error, urllib3.exceptions.ProxyError):
        return f"the proxy: {_cause(error.original_error)}"
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return f"its name {error.conn.host} cannot be resolved"
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return "no connection in time"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "no data in time"
    inner = getattr(error, "reason", None) or error.__cause__ or error
    return " ".join(str(inner).split()) or type(error).__name__
