"""A mirror is asked first, and the registry itself for what the mirror lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.artifacts.fake_registry import REPOSITORY, FakeRegistry, basic, digest, layer

from kaito_hooks.artifacts import image
from kaito_hooks.artifacts.errors import AccessDenied, ArtifactNotFound, Unreachable
from kaito_hooks.artifacts.registry.credentials import Credentials
from kaito_hooks.artifacts.registry.endpoints import Registries
from kaito_hooks.artifacts.registry.reader import RegistryReader
from kaito_hooks.artifacts.registry.reference import parse
from kaito_hooks.artifacts.transfer.http import Transfer

MANIFEST = ("GET", f"{REPOSITORY}/manifests/1")
DATA = layer("w/x", b"x")


@pytest.fixture
def reader(fake: FakeRegistry, storage: FakeRegistry, transfer: Transfer) -> RegistryReader:
    """Of the registry ``fake``, whose mirror is ``storage``."""
    return RegistryReader(
        parse(f"{fake.host}/team/model:1"),
        registries=Registries(mirrors={fake.host: f"http://{storage.host}"}, plain_http=frozenset([fake.host])),
        transfer=transfer,
        credentials=[Credentials("me", "secret")],
    )


def test_a_registry_is_not_asked_for_what_its_mirror_has(
    fake: FakeRegistry, storage: FakeRegistry, reader: RegistryReader, tmp_path: Path
) -> None:
    storage.image("1", DATA)
    image.fetch(reader, folder="/w", destination=tmp_path)
    assert (tmp_path / "x").read_bytes() == b"x"
    assert fake.requests == []


@pytest.mark.parametrize("status", [401, 403, 404, 503])
def test_a_registry_is_asked_for_what_its_mirror_lacks(
    fake: FakeRegistry, storage: FakeRegistry, reader: RegistryReader, tmp_path: Path, status: int
) -> None:
    """With its own credentials, which the mirror never gets."""
    fake.token_uses = 100
    fake.image("1", DATA)
    challenge = f'Basic realm="x", Bearer realm="http://{storage.host}/token"'
    storage.overrides[MANIFEST] = (status, {"WWW-Authenticate": challenge}, b"")
    image.fetch(reader, folder="/w", destination=tmp_path)
    assert (tmp_path / "x").read_bytes() == b"x"
    assert storage.requests
    assert not any(request.headers.get("Authorization") == basic() for request in storage.requests)


def test_a_mirror_that_is_down_is_passed_over(
    fake: FakeRegistry, storage: FakeRegistry, reader: RegistryReader, tmp_path: Path
) -> None:
    storage.stop()
    fake.image("1", DATA)
    image.fetch(reader, folder="/w", destination=tmp_path)
    assert (tmp_path / "x").read_bytes() == b"x"


def test_a_layer_that_a_mirror_lacks_comes_from_the_registry(
    fake: FakeRegistry, storage: FakeRegistry, reader: RegistryReader, tmp_path: Path
) -> None:
    fake.token_uses = 100
    fake.image("1", DATA)
    storage.image("1", DATA)
    del storage.paths[f"{REPOSITORY}/blobs/{digest(DATA)}"]
    image.fetch(reader, folder="/w", destination=tmp_path)
    assert (tmp_path / "x").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("status", "error"), [(404, ArtifactNotFound), (403, AccessDenied), (503, Unreachable)], ids=str
)
def test_what_a_mirror_answered_is_told_when_nobody_has_it(
    fake: FakeRegistry, storage: FakeRegistry, reader: RegistryReader, status: int, error: type[Exception]
) -> None:
    fake.overrides[MANIFEST] = (status, {}, b"")
    with pytest.raises(error, match=f"http://{storage.host} answered 404"):
        reader.manifest()
