"""What `make push` leaves in a registry: an image, its bill of materials and their signatures, by the real programs."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.eventually import eventually

from kaito_local.cluster.registry import USER
from kaito_local.cluster.registry import Registry as LocalRegistry
from kaito_local.errors import BuildError
from kaito_local.images.build import Builder, Image
from kaito_local.images.publish import PROGRAMS, Registry, publish
from kaito_local.machine import gotools
from kaito_local.machine.folders import cache_folder
from kaito_local.machine.ports import free_ports
from kaito_local.machine.processes import Child
from kaito_local.machine.supervisor import answers

ROOT = Path(__file__).parents[3]
METADATA = "Metadata-Version: 2.1\nName: pyyaml\nVersion: 6.0.3\n"


@dataclass(frozen=True)
class Desk:
    """A registry that wants a password, one built image, and the programs with keys of their own."""

    host: str
    builder: Builder
    image: Image
    programs: dict[str, Path]
    password: str

    def registry(self, *, key: str = "") -> Registry:
        return Registry(f"{self.host}/team/", plain_http=True, key=key)

    def run(self, name: str, *arguments: str, check: bool = True) -> str:
        command = [str(self.programs[name]), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if check:
            assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo, which copies images, is not installed on this machine")
    programs = gotools.ensure(["registry", *PROGRAMS], tools=ROOT / "tools", cache=cache_folder())
    mirror, port = free_ports(2)
    local = LocalRegistry(tmp_path / "cluster", address="127.0.0.1", mirror_port=mirror, port=port)
    listener = next(p for p in local.programs(programs["registry"]) if p.name == "registry")
    child = Child(listener.name, listener.command, log=Path(listener.log), environment=listener.environment)
    home = tmp_path / "home"
    (home / ".docker").mkdir(parents=True)
    credentials = base64.b64encode(f"{USER}:{local.password()}".encode()).decode()
    (home / ".docker" / "config.json").write_text(json.dumps({"auths": {local.host: {"auth": credentials}}}))
    for name, value in {"HOME": home, "DOCKER_CONFIG": home / ".docker", "XDG_CONFIG_HOME": home / "config"}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("XDG_RUNTIME_DIR", "REGISTRY_AUTH_FILE"):
        monkeypatch.delenv(name, raising=False)
    builder = Builder(tmp_path / "cache")
    (tmp_path / "METADATA").write_text(METADATA)
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    image = Image("app", tmp_path / "Dockerfile", tmp_path, reference="ghcr.io/kaito-python/app:1.2.3")
    layer = builder.layout.add_layer({"site-packages/pyyaml-6.0.3.dist-info/METADATA": tmp_path / "METADATA"})
    builder.layout.add_image(image.built_name, [layer], config={})
    try:
        child.start()
        eventually(lambda: answers(local.host))
        yield Desk(local.host, builder, image, programs, local.password())
    finally:
        child.stop()


def trust(desk: Desk) -> None:
    """A key of this machine, and a policy by which only what it has signed is good."""
    desk.run("notation", "cert", "generate-test", "releases")
    policy = {
        "name": "releases",
        "registryScopes": ["*"],
        "signatureVerification": {"level": "strict"},
        "trustStores": ["ca:releases"],
        "trustedIdentities": ["*"],
    }
    folder = Path(os.environ["XDG_CONFIG_HOME"]) / "notation"
    (folder / "trustpolicy.json").write_text(json.dumps({"version": "1.0", "trustPolicies": [policy]}))


def test_a_pushed_image_has_its_bill_and_both_have_a_signature_that_verifies(desk: Desk) -> None:
    trust(desk)
    [published] = publish(desk.builder, [desk.image], desk.registry(key="releases"), programs=desk.programs)
    reference, _, digest = published.partition("@")
    assert reference == f"{desk.host}/team/app:1.2.3"
    at = f"{desk.host}/team/app@{digest}"
    manifest = json.loads(desk.run("oras", "manifest", "fetch", "--plain-http", at))
    assert all(layer["mediaType"].endswith("+gzip") for layer in manifest["layers"])

    said = json.loads(desk.run("oras", "discover", "--plain-http", "--format", "json", at))
    kinds = {entry["artifactType"]: entry["reference"] for entry in said["referrers"]}
    assert kinds.keys() == {"application/vnd.cyclonedx+json", "application/vnd.cncf.notary.signature"}
    folder = desk.builder.cache / "pulled"
    desk.run("oras", "pull", "--plain-http", "--output", str(folder), kinds["application/vnd.cyclonedx+json"])
    bill = json.loads((folder / "bill.cdx.json").read_text())
    assert [component["purl"] for component in bill["components"]] == ["pkg:pypi/pyyaml@6.0.3"]
    assert digest.removeprefix("sha256:") in bill["metadata"]["component"]["purl"]
    for signed in (at, kinds["application/vnd.cyclonedx+json"]):
        assert "Successfully verified" in desk.run("notation", "verify", "--insecure-registry", signed)


def test_pushing_again_adds_no_second_bill(desk: Desk) -> None:
    for _ in range(2):
        [published] = publish(desk.builder, [desk.image], desk.registry(), programs=desk.programs)
    at = f"{desk.host}/team/app@{published.partition('@')[2]}"
    said = json.loads(desk.run("oras", "discover", "--plain-http", "--format", "json", at))
    assert len(said["referrers"]) == 1


def test_an_image_without_a_signature_does_not_verify(desk: Desk) -> None:
    trust(desk)
    [published] = publish(desk.builder, [desk.image], desk.registry(), programs=desk.programs)
    at = f"{desk.host}/team/app@{published.partition('@')[2]}"
    said = desk.run("notation", "verify", "--insecure-registry", at, check=False)
    assert "no signature is associated with" in said


def test_a_key_that_notation_does_not_know_is_named(desk: Desk) -> None:
    with pytest.raises(BuildError, match=r"cannot sign .*team/app:1.2.3: .*nobodys"):
        publish(desk.builder, [desk.image], desk.registry(key="nobodys"), programs=desk.programs)


def test_a_registry_that_refuses_the_password_is_told_in_one_line(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "home" / ".docker" / "config.json").write_text("{}")
    with pytest.raises(BuildError, match=r"^cannot push .*team/app:1.2.3: .*(unauthorized|authentication required)"):
        publish(desk.builder, [desk.image], desk.registry(), programs=desk.programs)


def test_the_login_that_the_page_about_aks_writes_is_one_that_every_program_finds(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """skopeo by itself keeps a login where oras and notation do not look."""
    home = tmp_path / "home"
    shutil.rmtree(home / ".docker")
    monkeypatch.delenv("DOCKER_CONFIG")
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    page = (ROOT / "docs" / "install-aks.md").read_text()
    [command] = re.findall(r"skopeo login .*", page)
    written = command.replace('"$ACR.azurecr.io"', desk.host).replace("00000000-0000-0000-0000-000000000000", USER)
    password = json.dumps(desk.password)
    subprocess.run(f"{written} --tls-verify=false <<<{password}", shell=True, executable="/bin/bash", check=True)
    [published] = publish(desk.builder, [desk.image], desk.registry(), programs=desk.programs)
    at = f"{desk.host}/team/app@{published.partition('@')[2]}"
    assert "application/vnd.cyclonedx+json" in desk.run("oras", "discover", "--plain-http", at)
