"""Pushing to a registry that points elsewhere, refuses, or asks for more rights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.artifacts.fake_registry import UPLOADS, FakeRegistry

from kaito_hooks.artifacts.errors import AccessDenied, ArtifactError, ArtifactNotFound, NotPushed, Unreachable
from kaito_hooks.artifacts.package import Package, pack
from kaito_hooks.artifacts.registry.credentials import Credentials
from kaito_hooks.artifacts.registry.endpoints import Registries
from kaito_hooks.artifacts.registry.reference import parse
from kaito_hooks.artifacts.registry.writer import RegistryWriter
from kaito_hooks.artifacts.transfer.http import Transfer


def writer(fake: FakeRegistry, transfer: Transfer) -> RegistryWriter:
    return RegistryWriter(
        parse(f"{fake.host}/team/model:1"),
        registries=Registries(plain_http=frozenset([fake.host])),
        transfer=transfer,
        credentials=[Credentials("me", "secret")],
    )


@pytest.fixture
def packed(tmp_path: Path) -> Package:
    folder, work = tmp_path / "adapter", tmp_path / "work"
    folder.mkdir()
    work.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return pack(folder, work=work)


def test_what_is_pushed_is_there(fake: FakeRegistry, transfer: Transfer, packed: Package) -> None:
    fake.token_uses = 100
    assert writer(fake, transfer).push(packed) == packed.digest
    assert fake.paths["/v2/team/model/manifests/1"][2] == packed.manifest
    assert fake.paths[f"/v2/team/model/blobs/{packed.layer_digest}"][2] == packed.layer.read_bytes()


def test_what_is_there_is_not_sent_again(fake: FakeRegistry, transfer: Transfer, packed: Package) -> None:
    writer(fake, transfer).push(packed)
    sent = len(fake.requests)
    assert writer(fake, transfer).push(packed) == packed.digest
    assert [(request.method, request.path) for request in fake.requests[sent:]] == [
        ("GET", "/v2/team/model/manifests/1")
    ]


def test_a_push_asks_once_for_the_right_to_pull_and_to_push(
    fake: FakeRegistry, transfer: Transfer, packed: Package
) -> None:
    """The first answer asks for no more than the right to read the tag."""
    fake.token_uses = 100
    writer(fake, transfer).push(packed)
    (asked,) = [request.query for request in fake.requests if request.path == "/token"]
    assert asked == {"service": ["x"], "scope": ["repository:team/model:pull,push"]}


@pytest.mark.parametrize("location", ["http://{}/stolen", "//{}/stolen", "http://user@{}/stolen"])
def test_an_upload_is_not_sent_to_another_origin(
    fake: FakeRegistry, storage: FakeRegistry, transfer: Transfer, packed: Package, location: str
) -> None:
    fake.token_uses = 100
    fake.overrides[("POST", UPLOADS)] = (202, {"Location": location.format(storage.host)}, b"")
    with pytest.raises(Unreachable, match=storage.host):
        writer(fake, transfer).push(packed)
    with pytest.raises(Unreachable, match=storage.host):
        writer(fake, transfer).probe()
    assert storage.requests == []


def refusal(code: str, message: str = "no") -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message, "detail": {}}]}).encode()


@pytest.mark.parametrize(
    ("status", "body", "error", "says"),
    [
        (
            400,
            refusal("NAME_INVALID", "invalid name"),
            NotPushed,
            "answered 400 to a push of .*: NAME_INVALID invalid name",
        ),
        (405, b"", NotPushed, "takes no pushes"),
        (405, refusal("UNSUPPORTED", "read-only mode"), NotPushed, "UNSUPPORTED read-only mode"),
        (413, b"<html>too large</html>", NotPushed, "takes nothing so large"),
        (412, b"[]", NotPushed, "answered 412"),
        (308, b"", NotPushed, "answered 308"),
        (400, refusal("DIGEST_INVALID"), Unreachable, "DIGEST_INVALID"),
        (409, b"", Unreachable, "answered 409"),
        (429, b"", Unreachable, "answered 429"),
        (503, b"", Unreachable, "answered 503"),
        (403, refusal("DENIED"), AccessDenied, "refused"),
        (404, refusal("NAME_UNKNOWN"), ArtifactNotFound, "does the repository exist"),
    ],
)
def test_a_refusal_that_no_other_try_would_change_is_final(
    fake: FakeRegistry,
    transfer: Transfer,
    packed: Package,
    status: int,
    body: bytes,
    error: type[ArtifactError],
    says: str,
) -> None:
    fake.overrides = {("PUT", f"{UPLOADS}1"): (status, {}, body)}
    with pytest.raises(error, match=says) as raised:
        writer(fake, transfer).push(packed)
    assert raised.value.final is (error is NotPushed)
    fake.overrides = {("POST", UPLOADS): (status, {}, body)}
    with pytest.raises(error, match=says):
        writer(fake, transfer).probe()
