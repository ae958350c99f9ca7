"""A registry and a hub that misbehave: expiring tokens, redirects, damage, breaks, lies."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.unit.artifacts.fake_registry import (
    DOCKER,
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LIST,
    FakeRegistry,
    basic,
    digest,
    layer,
)

from kaito_hooks.artifacts import hub, image
from kaito_hooks.artifacts.content import check_config, is_left_out
from kaito_hooks.artifacts.errors import (
    AccessDenied,
    ArtifactError,
    ArtifactNotFound,
    Damaged,
    DiskFull,
    InvalidReference,
    RefusedContent,
    UnsupportedArtifact,
)
from kaito_hooks.artifacts.registry.credentials import Credentials
from kaito_hooks.artifacts.registry.endpoints import Registries
from kaito_hooks.artifacts.registry.reader import RegistryReader
from kaito_hooks.artifacts.registry.reference import parse
from kaito_hooks.artifacts.transfer.http import Transfer

REVISION = "0123456789abcdef0123456789abcdef01234567"


def reader(fake: FakeRegistry, transfer: Transfer, version: str = ":1", *, password: str = "secret") -> RegistryReader:
    return RegistryReader(
        parse(f"{fake.host}/team/model{version}"),
        registries=Registries(plain_http=frozenset([fake.host])),
        transfer=transfer,
        credentials=[Credentials("me", password)],
    )


def fetch(fake: FakeRegistry, transfer: Transfer, destination: Path, version: str = ":1") -> dict[str, bytes]:
    destination.mkdir(exist_ok=True)
    image.fetch(reader(fake, transfer, version), folder="/w", destination=destination)
    return {p.name: p.read_bytes() for p in destination.rglob("*") if p.is_file()}


def test_a_token_that_expires_between_layers_is_renewed(fake: FakeRegistry, transfer: Transfer, tmp_path: Path) -> None:
    fake.token_uses = 2
    fake.image("1", *(layer(f"w/{n}", bytes([n])) for n in range(5)))
    assert fetch(fake, transfer, tmp_path / "d") == {str(n): bytes([n]) for n in range(5)}
    assert len(fake.tokens) > 2


def test_a_token_that_expires_within_a_layer_is_renewed_where_it_broke_off(
    fake: FakeRegistry, transfer: Transfer, tmp_path: Path
) -> None:
    fake.token_uses = 3  # list, manifest, first half of the layer
    content = random.Random(2).randbytes(300_000)
    fake.image("1", layer("w/big", content))
    fake.break_after = [100_000]
    assert fetch(fake, transfer, tmp_path / "d") == {"big": content}
    assert any(request.headers.get("Range") == "bytes=100000-" for request in fake.requests)


def test_a_wrong_password_is_told_once_and_not_repeated(fake: FakeRegistry, transfer: Transfer) -> None:
    fake.token_uses = 100
    with pytest.raises(AccessDenied, match="credentials are not accepted") as refused:
        reader(fake, transfer, password="wrong").manifest()
    assert "wrong" not in str(refused.value)
    assert sum(request.path == "/token" for request in fake.requests) == 1


def test_the_password_goes_to_the_token_server_only(fake: FakeRegistry, transfer: Transfer, tmp_path: Path) -> None:
    fake.token_uses = 100
    fake.image("1", layer("w/x", b"x"))
    fetch(fake, transfer, tmp_path / "d")
    assert {r.path for r in fake.requests if r.headers.get("Authorization") == basic()} == {"/token"}


@pytest.mark.parametrize("challenge", ['Basic realm="x"', 'Bearer realm="http://{}/token"'])
def test_the_storage_that_a_registry_points_to_never_gets_the_password(
    fake: FakeRegistry, storage: FakeRegistry, transfer: Transfer, tmp_path: Path, challenge: str
) -> None:
    data = layer("w/x", b"x")
    fake.token_uses = 100
    fake.image("1", data)
    fake.paths[f"/v2/team/model/blobs/{digest(data)}"] = (307, {"Location": f"http://{storage.host}/stored"}, b"")
    storage.overrides[("GET", "/stored")] = (401, {"WWW-Authenticate": challenge.format(storage.host)}, b"")
    with pytest.raises(AccessDenied):
        fetch(fake, transfer, tmp_path / "d")
    assert [(request.path, request.headers.get("Authorization")) for request in storage.requests] == [("/stored", None)]


def test_an_image_is_fetched_by_the_digest_of_its_list(fake: FakeRegistry, transfer: Transfer, tmp_path: Path) -> None:
    listed = fake.image("1", layer("w/x", b"x"))
    assert fetch(fake, transfer, tmp_path / "d", f"@{listed}") == {"x": b"x"}


AMD, ARM, WINDOWS, ATTESTATION = (
    {"os": "linux", "architecture": "amd64"},
    {"os": "linux", "architecture": "arm64"},
    {"os": "windows", "architecture": "amd64"},
    {"os": "unknown", "architecture": "unknown"},
)


def an_index(fake: FakeRegistry, *platforms: dict[str, str] | None) -> None:
    """Its images hold one file each, called as their place in it."""
    entries = []
    for number, platform in enumerate(platforms):
        config = fake.blob(b"{}", DOCKER_CONFIG)
        blobs = [fake.blob(layer(f"w/{number}", b"x"), DOCKER_LAYER)]
        document = {"schemaVersion": 2, "mediaType": DOCKER, "config": config, "layers": blobs}
        entry = {"mediaType": DOCKER, "digest": fake.manifest(f"{number}", document), "size": 1}
        entries.append(entry if platform is None else {**entry, "platform": platform})
    fake.manifest("index", {"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": entries})


@pytest.mark.parametrize(
    ("platforms", "taken"),
    [
        ((ATTESTATION, ARM, AMD), 2),
        ((None,), 0),
        ((ARM, None), 1),
        ((None, AMD), 1),
        ((ATTESTATION, ARM), 1),
        ((WINDOWS, ARM), 1),
        ((WINDOWS,), 0),
        (({},), 0),
    ],
)
def test_files_have_no_platform(
    fake: FakeRegistry, transfer: Transfer, tmp_path: Path, platforms: tuple[dict[str, str] | None, ...], taken: int
) -> None:
    an_index(fake, *platforms)
    assert fetch(fake, transfer, tmp_path / "d", ":index") == {f"{taken}": b"x"}


@pytest.mark.parametrize(
    "entries", [[], [{}], [{"digest": "x"}], [5], None, [{"platform": ATTESTATION, "digest": digest(b"")}]]
)
def test_an_index_without_an_image_is_told(fake: FakeRegistry, transfer: Transfer, entries: Any) -> None:
    fake.manifest("1", {"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": entries})
    with pytest.raises(UnsupportedArtifact, match="an index that names no image"):
        reader(fake, transfer).manifest()


def test_an_artifact_s_pickles_are_not_even_fetched(fake: FakeRegistry, transfer: Transfer, tmp_path: Path) -> None:
    names = ("adapter_config.json", "adapter_model.safetensors", "training_args.bin", "data/optimizer.PT")
    blobs = [
        fake.blob(name.encode(), "application/octet-stream", annotations={"org.opencontainers.image.title": name})
        for name in names
    ]
    config = fake.blob(b"{}", "application/vnd.oci.empty.v1+json")
    fake.manifest("1", {"schemaVersion": 2, "mediaType": DOCKER, "config": config, "layers": blobs})
    fetched = image.fetch(reader(fake, transfer), folder="/data", destination=tmp_path, leave_out=is_left_out)
    assert fetched.left_out == ("training_args.bin", "optimizer.PT")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert sum("/blobs/" in request.path for request in fake.requests) == 2


def test_nothing_of_an_artifact_is_fetched_that_does_not_fit(
    fake: FakeRegistry, transfer: Transfer, tmp_path: Path
) -> None:
    config = fake.blob(b"{}", "application/vnd.oci.empty.v1+json")
    title = {"org.opencontainers.image.title": "adapter_model.safetensors"}
    blobs = [{**fake.blob(b"x", "application/octet-stream", annotations=title), "size": 1 << 50}]
    fake.manifest("1", {"schemaVersion": 2, "mediaType": DOCKER, "config": config, "layers": blobs})
    with pytest.raises(DiskFull, match="the artifact does not fit"):
        fetch(fake, transfer, tmp_path / "d")
    assert not any("/blobs/" in request.path for request in fake.requests)


@pytest.mark.parametrize("damage", ["other bytes", "one byte more", "manifest"])
def test_what_does_not_match_its_digest_is_damaged(
    fake: FakeRegistry, transfer: Transfer, tmp_path: Path, damage: str
) -> None:
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
def test_an_answer_that_is_no_manifest_is_told_in_a_sentence(
    fake: FakeRegistry, transfer: Transfer, body: bytes
) -> None:
    fake.paths["/v2/team/model/manifests/1"] = (200, {}, body)
    with pytest.raises(ArtifactError):
        reader(fake, transfer).manifest()


class Hub:
    def __init__(self, fake: FakeRegistry) -> None:
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

        options: dict[str, Any] = {"token": None, "endpoint": self.endpoint, "transfer": transfer}
        options |= {"destination": destination, "leave_out": is_left_out}
        repo, revision = changed.pop("repo", "org/model"), changed.pop("revision", REVISION)
        hub.fetch(repo, revision, **{"check_config": check, **options, **changed})
        return {p.name: p.read_bytes() for p in destination.rglob("*") if p.is_file()}


@pytest.fixture
def model_hub(fake: FakeRegistry) -> Hub:
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
    fake: FakeRegistry, model_hub: Hub, transfer: Transfer, tmp_path: Path
) -> None:
    model_hub.siblings.clear()
    model_hub.add("model.safetensors", b"tensors", large=True)
    model_hub.add("config.json", b'{"architectures": ["GPT2LMHeadModel"]}')
    with pytest.raises(UnsupportedArtifact, match="GPT2LMHeadModel"):
        model_hub.fetch(transfer, tmp_path / "d")
    assert not any(request.path.endswith(".safetensors") for request in fake.requests)


def test_nothing_of_a_hub_s_model_is_fetched_that_does_not_fit(
    fake: FakeRegistry, model_hub: Hub, transfer: Transfer, tmp_path: Path
) -> None:
    model_hub.siblings[0]["size"] = 1 << 50
    model_hub.add("tokenizer.json", b"{}")
    with pytest.raises(DiskFull, match="org/model does not fit"):
        model_hub.fetch(transfer, tmp_path / "d")
    assert not any("/resolve/" in request.path for request in fake.requests)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_file_of_a_hub_is_found(
    fake: FakeRegistry, model_hub: Hub, transfer: Transfer, tmp_path: Path, name: str
) -> None:
    path = f"/org/model/resolve/{REVISION}/{name}"
    status, headers, body = fake.paths[path]
    fake.paths[path] = (status, headers, body.swapcase())
    with pytest.raises(Damaged, match=name):
        model_hub.fetch(transfer, tmp_path / "d")


def test_the_hub_s_token_is_sent_to_the_hub_and_not_to_its_storage(
    fake: FakeRegistry, storage: FakeRegistry, model_hub: Hub, transfer: Transfer, tmp_path: Path
) -> None:
    storage.paths["/stored"] = (200, {}, b"tensors")
    path = f"/org/model/resolve/{REVISION}/model.safetensors"
    fake.paths[path] = (302, {"Location": f"http://{storage.host}/stored"}, b"")
    assert model_hub.fetch(transfer, tmp_path / "d", token="hf_secret")["model.safetensors"] == b"tensors"
    assert all(request.headers.get("Authorization") == "Bearer hf_secret" for request in fake.requests)
    assert all("Authorization" not in request.headers for request in storage.requests)


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
