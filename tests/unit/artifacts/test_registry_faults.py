"""A registry and a hub that misbehave: expiring tokens, redirects, damage, breaks, lies."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import ssl
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from kaito_hooks.artifacts import hub, image
from kaito_hooks.artifacts.content import check_config
from kaito_hooks.artifacts.credentials import Credentials
from kaito_hooks.artifacts.errors import (
    AccessDenied,
    ArtifactError,
    ArtifactNotFound,
    Damaged,
    InvalidReference,
    RefusedContent,
    UnsupportedArtifact,
)
from kaito_hooks.artifacts.reference import parse
from kaito_hooks.artifacts.registries import Registries
from kaito_hooks.artifacts.registry import RegistryReader
from kaito_hooks.artifacts.transfer import Patience, Transfer

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
BASIC = "Basic " + base64.b64encode(b"me:secret").decode()
REVISION = "0123456789abcdef0123456789abcdef01234567"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


class Fake:
    """Serves ``paths``; with ``token_uses`` every token is good for that many requests."""

    def __init__(self) -> None:
        self.paths: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.token_uses: int | None = None
        self.tokens: dict[str, int] = {}
        self.break_after: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.serve(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        self.requests.append((path, dict(handler.headers)))
        status, headers, body = self.respond(handler, path)
        cut = self.break_after.pop(0) if self.break_after and "/blobs/" in path and status in (200, 206) else None
        handler.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(key, value)
        handler.end_headers()
        handler.wfile.write(body if cut is None else body[:cut])
        handler.close_connection = cut is not None

    def respond(self, handler: BaseHTTPRequestHandler, path: str) -> tuple[int, dict[str, str], bytes]:
        if path == "/token":
            if handler.headers.get("Authorization") != BASIC:
                return 401, {}, b""
            token = f"t{len(self.tokens)}"
            self.tokens[token] = self.token_uses or 0
            scope = parse_qs(urlsplit(handler.path).query)["scope"][0]
            assert scope == "repository:team/model:pull"
            return 200, {}, json.dumps({"token": token}).encode()
        if self.token_uses is not None and path.startswith("/v2/"):
            token = handler.headers.get("Authorization", "").removeprefix("Bearer ")
            if self.tokens.get(token, 0) <= 0:
                challenge = f'Bearer realm="http://{self.host}/token",service="x",scope="repository:team/model:pull"'
                return 401, {"WWW-Authenticate": challenge}, b""
            self.tokens[token] -= 1
        status, headers, body = self.paths.get(path, (404, {}, b""))
        start = handler.headers.get("Range", "").removeprefix("bytes=").rstrip("-")
        if start and status == 200:
            return 206, {**headers, "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}, body[int(start) :]
        return status, headers, body

    def blob(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        self.paths[f"/v2/team/model/blobs/{digest(data)}"] = (200, {}, data)
        return {"mediaType": media_type, "size": len(data), "digest": digest(data), **more}

    def manifest(self, tag: str, document: dict[str, Any]) -> str:
        body = json.dumps(document).encode()
        for version in (tag, digest(body)):
            self.paths[f"/v2/team/model/manifests/{version}"] = (200, {"Content-Type": document["mediaType"]}, body)
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


@pytest.fixture
def fake() -> Iterator[Fake]:
    running = Fake()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def transfer() -> Transfer:
    patience = Patience(connect=2, read=2, tries=3)
    return Transfer(
        tls=ssl.create_default_context(), patience=patience, sleep=lambda seconds: None, rng=random.Random(1)
    )


def reader(fake: Fake, transfer: Transfer, version: str = ":1", *, password: str = "secret") -> RegistryReader:
    return RegistryReader(
        parse(f"{fake.host}/team/model{version}"),
        registries=Registries(plain_http=frozenset([fake.host])),
        transfer=transfer,
        credentials=Credentials("me", password),
    )


def fetch(fake: Fake, transfer: Transfer, destination: Path, version: str = ":1") -> dict[str, bytes]:
    destination.mkdir(exist_ok=True)
    image.fetch(reader(fake, transfer, version), folder="/w", destination=destination)
    return {p.name: p.read_bytes() for p in destination.rglob("*") if p.is_file()}


def test_a_token_that_expires_between_layers_is_renewed(fake: Fake, transfer: Transfer, tmp_path: Path) -> None:
    fake.token_uses = 2
    fake.image("1", *(layer(f"w/{n}", bytes([n])) for n in range(5)))
    assert fetch(fake, transfer, tmp_path / "d") == {str(n): bytes([n]) for n in range(5)}
    assert len(fake.tokens) > 2


def test_a_token_that_expires_within_a_layer_is_renewed_where_it_broke_off(
    fake: Fake, transfer: Transfer, tmp_path: Path
) -> None:
    fake.token_uses = 3  # list, manifest, first half of the layer
    content = random.Random(2).randbytes(300_000)
    fake.image("1", layer("w/big", content))
    fake.break_after = [100_000]
    assert fetch(fake, transfer, tmp_path / "d") == {"big": content}
    assert any(headers.get("Range") == "bytes=100000-" for _, headers in fake.requests)


def test_a_wrong_password_is_told_once_and_not_repeated(fake: Fake, transfer: Transfer) -> None:
    fake.token_uses = 100
    with pytest.raises(AccessDenied, match="credentials are not accepted") as refused:
        reader(fake, transfer, password="wrong").manifest()
    assert "wrong" not in str(refused.value)
    assert sum(path == "/token" for path, _ in fake.requests) == 1


def test_the_password_goes_to_the_token_server_only(fake: Fake, transfer: Transfer, tmp_path: Path) -> None:
    fake.token_uses = 100
    fake.image("1", layer("w/x", b"x"))
    fetch(fake, transfer, tmp_path / "d")
    assert {path for path, headers in fake.requests if headers.get("Authorization") == BASIC} == {"/token"}


def test_an_image_is_fetched_by_the_digest_of_its_list(fake: Fake, transfer: Transfer, tmp_path: Path) -> None:
    listed = fake.image("1", layer("w/x", b"x"))
    assert fetch(fake, transfer, tmp_path / "d", f"@{listed}") == {"x": b"x"}


@pytest.mark.parametrize("damage", ["other bytes", "one byte more", "manifest"])
def test_what_does_not_match_its_digest_is_damaged(fake: Fake, transfer: Transfer, tmp_path: Path, damage: str) -> None:
    data = layer("w/x", b"x" * 1000)
    listed = fake.image("1", data)
    if damage == "manifest":
        path = f"/v2/team/model/manifests/{listed}"
        status, headers, body = fake.paths[path]
        fake.paths[path] = (status, headers, body + b" ")
    else:
        changed = data.replace(b"x" * 1000, b"y" * 1000) if damage == "other bytes" else data + b"\0"
        fake.paths[f"/v2/team/model/blobs/{digest(data)}"] = (200, {}, changed)
    with pytest.raises(Damaged):
        fetch(fake, transfer, tmp_path / "d", f"@{listed}")


@pytest.mark.parametrize(
    "body", [b"<html>login</html>", b"[]", b'{"schemaVersion": 1}', b'{"mediaType": "x", "layers": [{}]}']
)
def test_an_answer_that_is_no_manifest_is_told_in_a_sentence(fake: Fake, transfer: Transfer, body: bytes) -> None:
    fake.paths["/v2/team/model/manifests/1"] = (200, {}, body)
    with pytest.raises(ArtifactError):
        reader(fake, transfer).manifest()


class Hub:
    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        self.endpoint = f"http://{fake.host}"
        self.siblings: list[dict[str, Any]] = []

    def add(self, name: str, content: bytes, *, large: bool = False) -> None:
        blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
        if large:
            entry |= {"lfs": {"sha256": hashlib.sha256(content).hexdigest()}, "blobId": "of the pointer"}
        self.siblings.append(entry)
        self.fake.paths[f"/org/model/resolve/{REVISION}/{name}"] = (200, {}, content)
        listing = json.dumps({"siblings": self.siblings}).encode()
        self.fake.paths[f"/api/models/org/model/revision/{REVISION}"] = (200, {}, listing)

    def fetch(self, transfer: Transfer, destination: Path, **changed: Any) -> dict[str, bytes]:
        destination.mkdir(exist_ok=True)

        def check(path: Path) -> None:
            check_config(path, architecture="Phi3ForCausalLM", source="org/model")

        options = {"token": None, "endpoint": self.endpoint, "transfer": transfer, "destination": destination}
        repo, revision = changed.pop("repo", "org/model"), changed.pop("revision", REVISION)
        hub.fetch(repo, revision, **{"check_config": check, **options, **changed})
        return {p.name: p.read_bytes() for p in destination.rglob("*") if p.is_file()}


@pytest.fixture
def model_hub(fake: Fake) -> Hub:
    model = Hub(fake)
    model.add("model.safetensors", b"tensors", large=True)
    model.add("config.json", b'{"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "auto_map": {"A": "b"}}')
    return model


def test_only_what_a_model_needs_is_fetched_from_a_hub(model_hub: Hub, transfer: Transfer, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "modeling_phi3.py", "consolidated.00.safetensors", "original/params.json"):
        model_hub.add(name, b"no")
    model_hub.add("tokenizer.json", b"{}")
    assert set(model_hub.fetch(transfer, tmp_path / "d")) == {"config.json", "model.safetensors", "tokenizer.json"}


def test_the_architecture_is_checked_before_the_weights_are_fetched(
    fake: Fake, model_hub: Hub, transfer: Transfer, tmp_path: Path
) -> None:
    model_hub.siblings.clear()
    model_hub.add("model.safetensors", b"tensors", large=True)
    model_hub.add("config.json", b'{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(UnsupportedArtifact, match="GPT2LMHeadModel"):
        model_hub.fetch(transfer, tmp_path / "d")
    assert not any(path.endswith(".safetensors") for path, _ in fake.requests)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_file_of_a_hub_is_found(
    fake: Fake, model_hub: Hub, transfer: Transfer, tmp_path: Path, name: str
) -> None:
    path = f"/org/model/resolve/{REVISION}/{name}"
    status, headers, body = fake.paths[path]
    fake.paths[path] = (status, headers, body.swapcase())
    with pytest.raises(Damaged, match=name):
        model_hub.fetch(transfer, tmp_path / "d")


def test_the_hub_s_token_is_sent_to_the_hub_and_not_to_its_storage(
    fake: Fake, model_hub: Hub, transfer: Transfer, tmp_path: Path
) -> None:
    storage = Fake()
    try:
        storage.paths["/stored"] = (200, {}, b"tensors")
        path = f"/org/model/resolve/{REVISION}/model.safetensors"
        fake.paths[path] = (302, {"Location": f"http://{storage.host}/stored"}, b"")
        assert model_hub.fetch(transfer, tmp_path / "d", token="hf_secret")["model.safetensors"] == b"tensors"
        assert all(headers.get("Authorization") == "Bearer hf_secret" for _, headers in fake.requests)
        assert all("Authorization" not in headers for _, headers in storage.requests)
    finally:
        storage.http.shutdown()
        storage.http.server_close()


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"revision": "main"}, InvalidReference),
        ({"revision": REVISION[:-1]}, InvalidReference),
        ({"repo": "model"}, InvalidReference),
        ({"repo": "org/other"}, ArtifactNotFound),
    ],
    ids=["branch", "short commit", "no owner", "unknown"],
)
def test_a_hub_s_model_must_be_pinned_and_exist(
    model_hub: Hub, transfer: Transfer, tmp_path: Path, changed: dict[str, str], error: type[Exception]
) -> None:
    with pytest.raises(error):
        model_hub.fetch(transfer, tmp_path / "d", **changed)


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "auto_map": {}}, False),
        ({"architectures": ["Phi3ForCausalLM"]}, False),
        ({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3-own"}, True),
        ({"architectures": ["OwnForCausalLM"], "model_type": "own", "auto_map": {"AutoModel": "x.Own"}}, True),
        ({"architectures": ["OwnForCausalLM"], "model_type": "own"}, False),
    ],
    ids=["native with code for old libraries", "no type", "another type", "code of its own", "unknown but native"],
)
def test_a_model_that_needs_code_of_its_own_is_refused(tmp_path: Path, config: dict[str, Any], refused: bool) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    if not refused:
        check_config(path, architecture=None, source="it")
        return
    with pytest.raises(RefusedContent, match="code of its own"):
        check_config(path, architecture=None, source="it")


def test_credentials_may_be_for_a_pattern_of_registries(tmp_path: Path) -> None:
    from kaito_hooks.artifacts.credentials import find

    secret = tmp_path / ".dockerconfigjson"
    auths = {"*.azurecr.io": {"username": "any", "password": "1"}, "a.azurecr.io/b": {"username": "b", "password": "2"}}
    secret.write_text(json.dumps({"auths": auths}))
    assert find(parse("a.azurecr.io/x:1"), [secret]) == Credentials("any", "1")
    assert find(parse("a.azurecr.io/b/x:1"), [secret]) == Credentials("b", "2")
    assert find(parse("azurecr.io/x:1"), [secret]) is None
    assert find(parse("x.a.azurecr.io/x:1"), [secret]) is None
