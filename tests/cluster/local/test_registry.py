"""The registry's two listeners, as `registry` itself serves what was linked into its storage."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.eventually import PATIENCE, eventually

from kaito_local.cluster.registry import USER, Registry
from kaito_local.images.mirrors import Reference
from kaito_local.images.oci import LAYER_TYPE, MANIFEST_TYPE, Layout
from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder
from kaito_local.machine.ports import free_ports
from kaito_local.machine.processes import Child
from kaito_local.machine.supervisor import answers

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return Layout.open(tmp_path_factory.mktemp("layout"))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    program = gotools.ensure(["registry"], tools=ROOT / "tools", cache=cache_folder())["registry"]
    mirror, port = free_ports(2)
    registry = Registry(tmp_path_factory.mktemp("cluster"), address="127.0.0.1", mirror_port=mirror, port=port)
    listeners = [
        Child(p.name, p.command, log=Path(p.log), environment=p.environment) for p in registry.programs(program)
    ]
    try:
        for listener in listeners:
            listener.start()

        def listening() -> bool:
            for listener in listeners:
                listener.check()
            return answers(registry.mirror) and answers(registry.host)

        eventually(listening)
        yield registry
    finally:
        for listener in listeners:
            listener.stop()


def ask(
    host: str, method: str, path: str, *, body: bytes | None = None, password: str | None = None, kind: str = ""
) -> tuple[int, dict[str, str], bytes]:
    headers = {"Accept": MANIFEST_TYPE} | ({"Content-Type": kind} if kind else {})
    if password is not None:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{USER}:{password}".encode()).decode()
    connection = http.client.HTTPConnection(host, timeout=PATIENCE)
    try:
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()
    finally:
        connection.close()


def add_image(layout: Layout, content: bytes) -> str:
    layer = layout.add_bytes(content, media_type=LAYER_TYPE)
    return layout.add_image(hashlib.sha256(content).hexdigest(), [layer], config={}).digest


def test_a_published_image_is_pulled_whole_without_credentials(registry: Registry, layout: Layout) -> None:
    digest = add_image(layout, b"whole")
    registry.publish(layout, {"curlimages/curl": digest})
    status, headers, body = ask(registry.mirror, "GET", "/v2/docker.io/curlimages/curl/manifests/latest")
    assert status == 200
    assert headers["Docker-Content-Digest"] == digest
    assert headers["Content-Type"] == MANIFEST_TYPE
    for part in [json.loads(body)["config"], *json.loads(body)["layers"]]:
        status, _, blob = ask(registry.mirror, "GET", f"/v2/docker.io/curlimages/curl/blobs/{part['digest']}")
        assert status == 200
        assert f"sha256:{hashlib.sha256(blob).hexdigest()}" == part["digest"]
        assert len(blob) == part["size"]


def test_publishing_again_moves_the_tag_and_keeps_the_old_digest(registry: Registry, layout: Layout) -> None:
    old, new = add_image(layout, b"old"), add_image(layout, b"new")
    repository = Reference.parse("ghcr.io/a/b:1").local_repository
    for digest in (old, new):
        registry.publish(layout, {"ghcr.io/a/b:1": digest})
        _, headers, _ = ask(registry.mirror, "HEAD", f"/v2/{repository}/manifests/1")
        assert headers["Docker-Content-Digest"] == digest
    assert ask(registry.mirror, "HEAD", f"/v2/{repository}/manifests/{old}")[0] == 200


def test_the_mirror_takes_no_push(registry: Registry) -> None:
    assert ask(registry.mirror, "POST", "/v2/team/a/blobs/uploads/")[0] == 405


@pytest.mark.parametrize("password", [None, "wrong"])
def test_the_users_registry_refuses_strangers(registry: Registry, password: str | None) -> None:
    for method, path in (("GET", "/v2/"), ("POST", "/v2/team/a/blobs/uploads/")):
        assert ask(registry.host, method, path, password=password)[0] == 401


def test_what_a_user_pushes_can_be_pulled_again(registry: Registry) -> None:
    password = registry.password()
    config = b'{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}'
    digest = f"sha256:{hashlib.sha256(config).hexdigest()}"
    status, headers, _ = ask(registry.host, "POST", "/v2/team/a/blobs/uploads/", password=password)
    assert status == 202
    location = f"{headers['Location']}&digest={digest}"
    assert ask(registry.host, "PUT", location, body=config, password=password)[0] == 201
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": len(config)},
        "layers": [],
    }
    data = json.dumps(manifest).encode()
    path = "/v2/team/a/manifests/1"
    assert ask(registry.host, "PUT", path, body=data, password=password, kind=MANIFEST_TYPE)[0] == 201
    assert ask(registry.host, "GET", path, password=password)[2] == data


def test_the_password_stays_the_same(registry: Registry) -> None:
    assert Registry(registry.directory, address=registry.address).password() == registry.password()
