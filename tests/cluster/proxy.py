"""A proxy in front of a real API server, or of another server that speaks TLS, that fails as it is told.

    with FaultProxy.start(kubeconfig, folder) as proxy: client = Client.load(kubeconfig=str(proxy.kubeconfig)) rule =
    proxy.on("POST", r"/configmaps", DropAfter(), skip=1, times=1)   # the second POST happens, its answer is lost ...
    assert rule.hits == 1

Rules are looked at in the order in which they were made; the first that matches acts. What no rule matches passes
unchanged. Independently of rules ``freeze``/``thaw`` stop and resume every byte of every connection (a half-open
connection: TCP is well, nobody speaks), ``cut`` drops all connections, and ``refuse``/``accept`` close and reopen the
port.

Both sides speak TLS. The user's token is passed on; without one the proxy uses the kubeconfig's client certificate, so
RBAC sees the same user. Connection upgrades (exec, port-forward) are not supported.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from kubernetes import config as kubernetes_config
from kubernetes.client import Configuration
from tests.eventually import PATIENCE

from kaito_local.machine.pki import Authority


@dataclass(frozen=True, slots=True)
class DropBefore:
    """The connection is closed and the API server never hears of the request."""


@dataclass(frozen=True, slots=True)
class DropAfter:
    """The API server does what it is asked, and the connection is closed instead of an answer."""


@dataclass(frozen=True, slots=True)
class Delay:
    """The request is passed on ``seconds`` later."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Hold:
    """The request is passed on when ``gate`` opens, whatever has become of the client."""

    gate: threading.Event


@dataclass(frozen=True, slots=True)
class Answer:
    """The proxy answers itself; the API server never hears of the request. Without ``body`` it is a fitting Status."""

    status: int
    body: Mapping[str, Any] | bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Freeze:
    """The request is swallowed and never answered; the connection stays open until the client gives up."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """``deed`` happens before the request is passed on, which then is not, or after it was answered; then the
    connection is closed. A deed may end the client: it never sees that its connection was closed.
    """

    deed: Callable[[], None]
    after: bool = False


@dataclass(frozen=True, slots=True)
class CutWatch:
    """A watch is dropped in the middle of a line after that many whole ones."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class EndWatch:
    """A watch ends in order after that many lines, as at its timeout."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class FreezeWatch:
    """A watch passes that many lines and then nothing, and stays open."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class InjectWatch:
    """A watch passes that many lines, then ``event`` as one more, then goes on."""

    event: Mapping[str, Any]
    after: int = 0


@dataclass(frozen=True, slots=True)
class OnlyBookmarks:
    """A watch passes nothing but bookmarks."""


Action = (
    DropBefore
    | DropAfter
    | Delay
    | Hold
    | Answer
    | Freeze
    | Interrupt
    | CutWatch
    | EndWatch
    | FreezeWatch
    | InjectWatch
    | OnlyBookmarks
)

EXPIRED = {
    "type": "ERROR",
    "object": {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": "too old resource version: 1 (2)",
        "reason": "Expired",
        "code": 410,
    },
}
"""What the API server sends on a watch whose resourceVersion is no longer kept."""

_REASONS = {404: "NotFound", 409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError"} | {
    503: "ServiceUnavailable",
    504: "Timeout",
}


class Rule:
    """When ``action`` happens: for requests of ``method`` whose path and query match ``pattern`` and whose body holds
    ``body``, after ``skip``, ``times`` times.
    """

    def __init__(
        self, method: str | None, pattern: str, action: Action, *, skip: int, times: int | None, body: bytes
    ) -> None:
        self.action = action
        self._method = method
        self._name = f"{method} {pattern}"
        self._pattern = re.compile(pattern)
        self._body = body
        self._skip = skip
        self._times = times
        self._hits = 0
        self._changed = threading.Condition()

    @property
    def hits(self) -> int:
        """How often the rule acted."""
        return self._hits

    def wait(self, hits: int = 1, *, timeout: float = PATIENCE) -> None:
        """Waits until the rule has acted that often; AssertionError when it did not in time."""
        with self._changed:
            enough = self._changed.wait_for(lambda: self._hits >= hits, timeout)
            assert enough, f"{self._name}: {self._hits} of {hits} hits"

    def stop(self) -> None:
        """The rule acts no more."""
        with self._changed:
            self._times = self._hits

    def take(self, method: str, target: str, body: bytes) -> bool:
        """Whether the rule acts on this request; counts it."""
        with self._changed:
            if self._method not in (None, method) or not self._pattern.search(target) or self._body not in body:
                return False
            if self._skip > 0:
                self._skip -= 1
                return False
            if self._times is not None and self._hits >= self._times:
                return False
            self._hits += 1
            self._changed.notify_all()
            return True


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that reached the proxy. ``at``: monotonic seconds."""

    method: str
    path: str
    query: Mapping[str, str]
    at: float

    @property
    def is_watch(self) -> bool:
        """Whether it opens a watch."""
        return self.query.get("watch") in ("true", "1")


class FaultProxy:
    """The proxy; ``start`` and ``before`` make one, ``close`` (or leaving the ``with`` block) ends it.

    ``certified_tls`` is how the upstream is called for a request that has no token.
    """

    kubeconfig: Path

    def __init__(
        self,
        url: str,
        *,
        authority: Authority,
        anonymous_tls: ssl.SSLContext,
        certified_tls: ssl.SSLContext,
    ) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        self.upstream = (address.hostname, address.port or 443)
        self.anonymous_tls = anonymous_tls
        self.certified_tls = certified_tls
        pair = authority.server("proxy", hosts=["127.0.0.1", "localhost"])
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(pair.certificate, pair.key)
        self.flow = threading.Event()
        self.flow.set()
        self.closed = threading.Event()
        self._rules: list[Rule] = []
        self._seen: list[Seen] = []
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server: _Server | None = _Server(("127.0.0.1", 0), self)
        self.port: int = self._server.server_address[1]
        self.url = f"https://127.0.0.1:{self.port}"

    @classmethod
    def start(cls, kubeconfig: Path, folder: Path) -> FaultProxy:
        """A proxy to the API server of ``kubeconfig``; its own kubeconfig, for the same user, lies in ``folder``."""
        upstream = Configuration()
        kubernetes_config.load_kube_config(
            config_file=str(kubeconfig), client_configuration=upstream, persist_config=False
        )
        certified = ssl.create_default_context(cafile=upstream.ssl_ca_cert)
        if upstream.cert_file:
            certified.load_cert_chain(upstream.cert_file, upstream.key_file)
        authority = Authority.open(folder / "proxy-pki", name="fault-proxy")
        anonymous = ssl.create_default_context(cafile=upstream.ssl_ca_cert)
        proxy = cls(upstream.host, authority=authority, anonymous_tls=anonymous, certified_tls=certified)
        proxy.kubeconfig = folder / "proxy-kubeconfig"
        settings = yaml.safe_load(kubeconfig.read_text())
        for cluster in settings["clusters"]:
            cluster["cluster"] = {"server": proxy.url, "certificate-authority": str(authority.certificate)}
        proxy.kubeconfig.write_text(yaml.safe_dump(settings))
        proxy.kubeconfig.chmod(0o600)
        return proxy

    @classmethod
    def before(cls, url: str, authority: Authority) -> FaultProxy:
        """A proxy to a server whose certificate is ``authority``'s, as the proxy's own is: who trusts the one trusts
        the other.
        """
        tls = ssl.create_default_context(cafile=str(authority.certificate))
        return cls(url, authority=authority, anonymous_tls=tls, certified_tls=tls)

    def add(self, rule: Rule) -> None:
        """Enters a rule that was made elsewhere; one rule may stand in several proxies and then counts over all."""
        with self._lock:
            self._rules.append(rule)

    def on(
        self,
        method: str | None,
        pattern: str,
        action: Action,
        *,
        skip: int = 0,
        times: int | None = 1,
        body: str = "",
    ) -> Rule:
        """Does ``action`` to requests whose path and query match the regular expression and whose body holds that
        text; ``times=None``: always.
        """
        rule = Rule(method, pattern, action, skip=skip, times=times, body=body.encode())
        self.add(rule)
        return rule

    def clear(self) -> None:
        """Forgets all rules."""
        with self._lock:
            self._rules.clear()

    def seen(self, method: str | None = None, pattern: str = "", *, watch: bool | None = None) -> list[Seen]:
        """The requests so far, in order, whatever became of them."""
        expression = re.compile(pattern)
        with self._lock:
            seen = list(self._seen)
        return [
            one
            for one in seen
            if method in (None, one.method) and expression.search(one.path) and watch in (None, one.is_watch)
        ]

    def freeze(self) -> None:
        """No byte passes any more, on old connections and new ones; all stay open."""
        self.flow.clear()

    def thaw(self) -> None:
        """Everything that was held passes."""
        self.flow.set()

    def cut(self) -> None:
        """Drops all connections, without a word."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        """Closes the port and drops all connections."""
        if self._server is not None:
            self._server.end()
            self._server = None
        self.cut()

    def accept(self) -> None:
        """Opens the same port again."""
        if self._server is None:
            self._server = _Server(("127.0.0.1", self.port), self)

    def close(self) -> None:
        """Ends everything."""
        self.closed.set()
        self.flow.set()
        self.refuse()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def action_for(self, method: str, target: str, body: bytes = b"") -> Action | None:
        """Notes the request and returns what to do to it."""
        address = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        with self._lock:
            self._seen.append(Seen(method=method, path=address.path, query=query, at=time.monotonic()))
            rules = list(self._rules)
        return next((rule.action for rule in rules if rule.take(method, target, body)), None)

    def opened(self, connection: socket.socket) -> None:
        """A client connected."""
        with self._lock:
            self._connections.add(connection)

    def gone(self, connection: socket.socket) -> None:
        """A client's connection ended."""
        with self._lock:
            self._connections.discard(connection)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], proxy: FaultProxy) -> None:
        self.proxy = proxy
        super().__init__(address, _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="fault proxy", daemon=True)
        self._thread.start()

    def end(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join(PATIENCE)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what this proxy is for."""


class _Gone(Exception):
    """The client's connection is to be dropped."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 0
    server: _Server

    def setup(self) -> None:
        self._raw: socket.socket = self.request
        self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.proxy = self.server.proxy
        self.proxy.opened(self._raw)
        self._upstream: http.client.HTTPSConnection | None = None
        self.proxy.flow.wait()
        self._raw.settimeout(10.0)
        try:
            self.request = self.proxy.tls.wrap_socket(self._raw, server_side=True)
        except OSError:
            self.proxy.gone(self._raw)
            raise
        self.proxy.opened(self.request)
        self.proxy.gone(self._raw)
        self.request.settimeout(None)
        super().setup()

    def finish(self) -> None:
        self.proxy.gone(self.request)
        if self._upstream is not None:
            self._upstream.close()
        with contextlib.suppress(OSError):
            super().finish()
        with contextlib.suppress(OSError):
            self.request.close()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (_Gone, OSError, http.client.HTTPException):
            self.close_connection = True

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length) if length else None
        action = self.proxy.action_for(self.command, self.path, body or b"")
        self._pass_gate()
        if isinstance(action, DropBefore):
            raise _Gone
        if isinstance(action, Interrupt) and not action.after:
            action.deed()
            raise _Gone
        if isinstance(action, Freeze):
            self._hang()
        if isinstance(action, Answer):
            self._answer(action)
            return
        if isinstance(action, Delay) and self.proxy.closed.wait(action.seconds):
            raise _Gone
        if isinstance(action, Hold):
            action.gate.wait(10 * PATIENCE)
        response = self._forward(body)
        if isinstance(action, DropAfter):
            response.read()
            raise _Gone
        if isinstance(action, Interrupt):
            action.deed()
            raise _Gone
        if parse_qs(urlsplit(self.path).query).get("watch", [""])[-1] in ("true", "1") and response.status == 200:
            self._stream(response, action)
            return
        self._reply(response.status, dict(response.getheaders()), response.read())

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _forward(self, body: bytes | None) -> http.client.HTTPResponse:
        tls = self.proxy.anonymous_tls if "Authorization" in self.headers else self.proxy.certified_tls
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("host", "connection", "content-length", "accept-encoding")
        }
        for attempt in (0, 1):
            if self._upstream is None:
                self._upstream = http.client.HTTPSConnection(*self.proxy.upstream, context=tls)
            try:
                self._upstream.request(self.command, self.path, body=body, headers=headers)
                return self._upstream.getresponse()
            except (OSError, http.client.HTTPException):
                self._upstream.close()
                self._upstream = None
                if attempt or self.command != "GET":
                    raise _Gone from None
        raise _Gone

    def _stream(self, response: http.client.HTTPResponse, action: Action | None) -> None:
        self.send_response_only(response.status)
        self.send_header("Content-Type", response.getheader("Content-Type", "application/json"))
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        pending = b""
        passed = 0
        self._at_line(action, passed, b"")
        while True:
            try:
                data = response.read1(65536)
            except (OSError, http.client.HTTPException):
                raise _Gone from None
            if not data:
                self._chunk(pending)
                self.wfile.write(b"0\r\n\r\n")
                return
            *lines, pending = (pending + data).split(b"\n")
            if action is None:
                whole = b"".join(line + b"\n" for line in lines)
                self._chunk(whole)
                continue
            for line in lines:
                if isinstance(action, OnlyBookmarks) and not line.startswith(b'{"type":"BOOKMARK"'):
                    continue
                self._chunk(line + b"\n")
                passed += 1
                if self._at_line(action, passed, line):
                    return

    def _at_line(self, action: Action | None, passed: int, line: bytes) -> bool:
        """Does what the action wants after that many lines; whether the watch has ended in order."""
        if not isinstance(action, CutWatch | EndWatch | FreezeWatch | InjectWatch) or passed != action.after:
            return False
        if isinstance(action, CutWatch):
            self._chunk(b'{"type":"MODIFIED","obj')
            raise _Gone
        if isinstance(action, FreezeWatch):
            self._hang()
        if isinstance(action, InjectWatch):
            self._chunk(json.dumps(action.event).encode() + b"\n")
            return False
        self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True
        return True

    def _chunk(self, data: bytes) -> None:
        if data:
            self._pass_gate()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _answer(self, answer: Answer) -> None:
        if isinstance(answer.body, bytes):
            data = answer.body
        else:
            reason = answer.reason or _REASONS.get(answer.status, "")
            status = {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": reason,
                "message": f"scripted {answer.status}",
                "code": answer.status,
            }
            data = json.dumps(answer.body if answer.body is not None else status).encode()
        self._reply(answer.status, {"Content-Type": "application/json", **answer.headers}, data)

    def _reply(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self._pass_gate()
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _pass_gate(self) -> None:
        self.proxy.flow.wait()
        if self.proxy.closed.is_set():
            raise _Gone

    def _hang(self) -> None:
        """Holds the connection open and silent until the client or the proxy ends it."""
        self.request.settimeout(0.2)
        while not self.proxy.closed.is_set():
            try:
                if not self.request.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        raise _Gone
