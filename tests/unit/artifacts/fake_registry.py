"""A registry whose every answer the test chooses: expiring tokens, redirects, damage, breaks, lies."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
REPOSITORY = "/v2/team/model"
UPLOADS = f"{REPOSITORY}/blobs/uploads/"

Answer = tuple[int, dict[str, str], bytes]


def basic(user: str = "me", password: str = "secret") -> str:
    """What a client sends of a user and a password."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Request:
    """One that arrived."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


class FakeRegistry:
    """Serves ``paths`` and takes uploads; with ``token_uses`` every token is good for that many requests.

    It asks with ``challenge`` and takes the users and identity tokens of ``accepted``; tokens of ``forbidden`` open
    nothing. ``overrides`` are answers by method and path, before anything else is looked at.
    """

    def __init__(self) -> None:
        self.paths: dict[str, Answer] = {}
        self.overrides: dict[tuple[str, str], Answer] = {}
        self.requests: list[Request] = []
        self.accepted: set[str | None] = {basic()}
        self.challenge = 'Bearer realm="http://{host}/token",service="x",scope="repository:team/model:pull"'
        self.token_uses: int | None = None
        self.tokens: dict[str, int] = {}
        self.forbidden: set[str] = set()
        self.break_after: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.serve(self)

            do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

            def do_CONNECT(self) -> None:
                outer.requests.append(Request("CONNECT", self.path, {}, dict(self.headers), b""))
                self.send_error(502)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        body = handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
        request = Request(handler.command, parts.path, parse_qs(parts.query), dict(handler.headers), body)
        self.requests.append(request)
        status, headers, body = self.overrides.get((request.method, request.path)) or self.respond(request)
        cut = self.break_after.pop(0) if self.break_after and "/blobs/" in parts.path and status in (200, 206) else None
        handler.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(key, value)
        handler.end_headers()
        if request.method != "HEAD":
            handler.wfile.write(body if cut is None else body[:cut])
        handler.close_connection = cut is not None

    def respond(self, request: Request) -> Answer:
        if request.path == "/token":
            return self.token(request)
        if self.token_uses is not None and request.path.startswith("/v2/"):
            authorization = request.headers.get("Authorization", "")
            token = authorization.removeprefix("Bearer ")
            if token in self.forbidden:
                return 403, {}, b""
            if self.tokens.get(token, 0) > 0:
                self.tokens[token] -= 1
            elif "Basic" not in self.challenge or authorization not in self.accepted:
                return 401, {"WWW-Authenticate": self.challenge.format(host=self.host)}, b""
        if request.method == "POST":
            return 202, {"Location": f"{UPLOADS}1?state=x"}, b""
        if request.method == "PUT":
            kept = request.path if "digest" not in request.query else f"{REPOSITORY}/blobs/{request.query['digest'][0]}"
            self.paths[kept] = (200, {}, request.body)
            return 201, {}, b""
        status, headers, body = self.paths.get(request.path, (404, {}, b""))
        start = request.headers.get("Range", "").removeprefix("bytes=").rstrip("-")
        if start and status == 200:
            return 206, {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}, body[int(start) :]
        return status, headers, body

    def token(self, request: Request) -> Answer:
        form = parse_qs(request.body.decode())
        if self.accepted.isdisjoint([request.headers.get("Authorization"), *form.get("refresh_token", [])]):
            return 401, {}, b""
        token = f"t{len(self.tokens)}"
        self.tokens[token] = self.token_uses or 0
        return 200, {}, json.dumps({"token": token}).encode()

    def blob(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        self.paths[f"{REPOSITORY}/blobs/{digest(data)}"] = (200, {}, data)
        return {"mediaType": media_type, "size": len(data), "digest": digest(data), **more}

    def manifest(self, tag: str, document: dict[str, Any]) -> str:
        body = json.dumps(document).encode()
        for version in (tag, digest(body)):
            self.paths[f"{REPOSITORY}/manifests/{version}"] = (200, {"Content-Type": document["mediaType"]}, body)
        return digest(body)

    def image(self, tag: str, *layers: bytes) -> str:
        """A Docker schema 2 image behind a manifest list, as docker itself pushes them."""
        config = self.blob(b'{"os":"linux","architecture":"amd64"}', DOCKER_CONFIG)
        blobs = [self.blob(data, DOCKER_LAYER) for data in layers]
        document = {"schemaVersion": 2, "mediaType": DOCKER, "config": config, "layers": blobs}
        inner = self.manifest(f"{tag}-amd64", document)
        platform = {"os": "linux", "architecture": "amd64"}
        entries = [
            {"mediaType": DOCKER, "digest": digest(b"attestation"), "size": 1, "platform": {"os": "unknown"}},
            {"mediaType": DOCKER, "digest": inner, "size": 1, "platform": platform},
        ]
        return self.manifest(tag, {"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": entries})
