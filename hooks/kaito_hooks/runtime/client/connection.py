"""HTTP to the API server over the official client's ApiClient: its credentials, TLS and proxy; our timeouts and errors.

Requests never retry by themselves: a reconcile that fails comes back through its queue, which knows about back-off and
Retry-After. Every request is bounded three times: the connection attempt, the silence between two reads, and the whole
answer.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3
from kubernetes import config as kubernetes_config
from kubernetes.client import ApiClient, Configuration

from kaito_hooks.runtime.client.decode import decode
from kaito_hooks.runtime.errors import ApiError, ConnectionFailed

logger = logging.getLogger(__name__)

Observer = Callable[[str, int, str], None]
"""Told of every request: method, status (0 = no answer), host."""

CONNECT_TIMEOUT = 5.0
CREDENTIALS_FOR = 5.0
"""Seconds for which credentials are good that were read once: a new token in a file is taken after that, or after a
401."""
_CHUNK = 64 * 1024
_ONCE = urllib3.Retry(False, redirect=False)
_REMEMBERED_WARNINGS = 256


class Connection:
    """A pool of connections to one API server, shared by all clients made from it. Thread-safe."""

    def __init__(self, api_client: ApiClient) -> None:
        self._configuration = api_client.configuration
        self.host = str(self._configuration.host).rstrip("/")
        self._pool, self._base = _pool(api_client.rest_client.pool_manager, self.host)
        self._credentials: tuple[float, Mapping[str, str]] = (0.0, {})
        self.user_agent = str(api_client.user_agent)
        self._observers: tuple[Observer, ...] = ()
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    @classmethod
    def load(cls, *, kubeconfig: str | None, user_agent: str) -> Connection:
        """The given kubeconfig, else the Pod's service account, else $KUBECONFIG or ~/.kube/config.

        Raises ConnectionFailed when none of them is usable.
        """
        settings = Configuration()
        try:
            if kubeconfig is None and os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
                kubernetes_config.load_incluster_config(client_configuration=settings)
            else:
                path = kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
                kubernetes_config.load_kube_config(
                    config_file=path, client_configuration=settings, persist_config=False
                )
        except (kubernetes_config.ConfigException, OSError, ValueError, TypeError, KeyError) as error:
            raise ConnectionFailed(f"no usable Kubernetes configuration: {error}", reason="Configuration") from error
        settings.retries = False
        settings.connection_pool_maxsize = 64
        settings.socket_options = _socket_options()
        api_client = ApiClient(configuration=settings)
        api_client.user_agent = user_agent
        return cls(api_client)

    def observe(self, observer: Observer) -> None:
        """Tells ``observer`` of every request from now on."""
        with self._lock:
            self._observers = (*self._observers, observer)

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: float,
    ) -> Any:
        """The parsed JSON answer of one request that ends within ``timeout`` seconds, or an ApiError."""
        deadline = time.monotonic() + timeout
        patience = urllib3.Timeout(total=timeout, connect=min(CONNECT_TIMEOUT, timeout))
        response = self._send(method, path, query=query, body=body, content_type=content_type, patience=patience)
        try:
            data = _read_all(response, deadline)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            response.close()
            self._report(method, 0)
            raise self._failed(method, path, error) from error
        response.release_conn()
        self._report(method, response.status)
        if not 200 <= response.status < 300:
            raise ApiError.of(response.status, data, response.headers)
        self._warn(response.headers)
        try:
            return decode(data)
        except ValueError as error:
            raise ApiError(
                f"{self.host}{path} answered {response.status} with something that is not JSON",
                status=response.status,
                reason="NotJSON",
            ) from error

    def open_stream(
        self, path: str, *, query: Mapping[str, Any], read_timeout: float
    ) -> urllib3.response.BaseHTTPResponse:
        """The open answer of a GET whose lines come over time; ``read_timeout`` seconds of silence fail a read."""
        patience = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=read_timeout)
        response = self._send("GET", path, query=query, patience=patience)
        if response.status == 200:
            self._report("GET", 200)
            return response
        try:
            data = _read_all(response, time.monotonic() + read_timeout)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self._failed("GET", path, error) from error
        finally:
            response.close()
        self._report("GET", response.status)
        raise ApiError.of(response.status, data, response.headers)

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None,
        patience: urllib3.Timeout,
        body: Any = None,
        content_type: str = "application/json",
    ) -> urllib3.response.BaseHTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": self.user_agent, **self._authorization()}
        data = None
        if body is not None:
            headers["Content-Type"] = content_type
            text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
            # Half of a surrogate pair, from an escape that somebody wrote, is not UTF-8 but may be escaped again.
            data = text.encode(errors="backslashreplace")
        given = {name: value for name, value in (query or {}).items() if value is not None}
        url = f"{self._base}{path}" + (f"?{urlencode(given)}" if given else "")
        try:
            response = self._pool.urlopen(
                method,
                url,
                body=data,
                headers=headers,
                timeout=patience,
                retries=_ONCE,
                redirect=False,
                preload_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self._report(method, 0)
            raise self._failed(method, path, error) from error
        if response.status == 401:
            self._credentials = (0.0, {})
        return response

    def _authorization(self) -> Mapping[str, str]:
        """The headers that say who asks, read again when they are no longer fresh."""
        read, headers = self._credentials
        if headers and time.monotonic() - read < CREDENTIALS_FOR:
            return headers
        try:
            settings = self._configuration.auth_settings().values()
        except (kubernetes_config.ConfigException, OSError) as error:
            raise ConnectionFailed(f"the credentials cannot be read: {error}", reason="Credentials") from error
        headers = {setting["key"]: setting["value"] for setting in settings if setting["value"]}
        self._credentials = (time.monotonic(), headers)
        return headers

    def _failed(self, method: str, path: str, error: Exception) -> ConnectionFailed:
        if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
            what = "no connection in time"
        elif isinstance(error, TimeoutError | urllib3.exceptions.TimeoutError):
            what = "no answer in time"
        else:
            what = str(error) or type(error).__name__
        return ConnectionFailed(f"{method} {self.host}{path}: {what}", reason="ConnectionFailed")

    def _report(self, method: str, status: int) -> None:
        for observer in self._observers:
            observer(method, status, self.host)

    def _warn(self, headers: Mapping[str, str]) -> None:
        """Logs the server's warnings (deprecated versions, unknown fields), each text once."""
        text = headers.get("Warning")
        if not text or text in self._warned:
            return
        with self._lock:
            if len(self._warned) < _REMEMBERED_WARNINGS:
                self._warned.add(text)
        logger.warning("the API server warns: %s", text)


def _pool(manager: urllib3.PoolManager, host: str) -> tuple[urllib3.HTTPConnectionPool, str]:
    """The connections to one host, and what goes before a path in a request on one of them.

    The manager would look for them with every request. A proxy wants the whole URL of what it forwards; what is
    encrypted passes through its tunnel.
    """
    pool = manager.connection_from_url(host)
    prefix = urllib3.util.parse_url(host).path or ""
    return pool, host if manager.proxy is not None and pool.scheme == "http" else prefix


def _read_all(response: urllib3.response.BaseHTTPResponse, deadline: float) -> bytes:
    """The whole body; TimeoutError when it drips in past the deadline."""
    parts = []
    while part := response.read1(_CHUNK):
        parts.append(part)
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(parts)


def _socket_options() -> list[tuple[int, int, int]]:
    """Dead peers are noticed by the kernel within about 30 s, whether data is in flight or not."""
    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 30_000)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
