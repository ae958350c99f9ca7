"""Adapters in a real registry: pushed at last, whatever was in the way, and read by everybody's tools."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.artifacts.command import ADAPTER, Command
from tests.cluster.artifacts.registry_fixture import RegistryServer, RunningRegistry
from tests.eventually import eventually

from kaito_hooks.artifacts.package import Package, pack
from kaito_hooks.artifacts.push import State, push
from kaito_hooks.artifacts.registry import credentials
from kaito_hooks.artifacts.registry.endpoints import Registries
from kaito_hooks.artifacts.registry.reference import parse
from kaito_hooks.artifacts.registry.writer import RegistryWriter
from kaito_hooks.artifacts.transfer.http import Transfer

FILES = {Path(name).name: data for name, data in ADAPTER.items()}
LINEAGE = {
    "base-model": "microsoft/Phi-3-mini-4k-instruct",
    "base-revision": "ff07dc01615f8113924aed013115ab2abd32115b",
    "data-digest": "sha256:" + "a" * 64,
    "data-rows": "16",
    "config-digest": "sha256:" + "b" * 64,
    "method": "qlora",
    "seed": "42",
    "versions": "torch=2.13.0, trl=1.16.0",
    "metrics": '{"loss": 0.25}',
}


@pytest.fixture
def trained(adapter: Path) -> Path:
    """The trainer's folder after a whole training."""
    (adapter / "lineage.json").write_text(json.dumps(LINEAGE))
    (adapter.parent / "fine_tuning_completed.txt").write_text("done")
    (adapter.parent / "progress.json").write_text(json.dumps({"phase": "Done", "metrics": {"loss": 0.25}}))
    return adapter.parent


class Clock:
    """Seconds that pass only while the push sleeps; what is due then happens in time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        while self.due and self.due[0][0] <= self.now:
            self.due.pop(0)[1]()


class Push:
    """A push with a clock that the test turns; every try reads the mounted Secret anew, as the container does."""

    def __init__(self, registry: RunningRegistry, package: Package, secret: Path, *, repository: str) -> None:
        self.clock, self.state = Clock(), State()
        self._package, self._secret = package, secret
        self._reference = parse(f"{registry.host}/{repository}:1")
        self._registries = Registries(plain_http=frozenset([registry.host]))

    def run(self, *, deadline: float = 86_400.0) -> str:
        transfer = Transfer(tls=ssl.create_default_context(), sleep=self.clock.sleep)

        def writer() -> RegistryWriter:
            return RegistryWriter(
                self._reference,
                registries=self._registries,
                transfer=transfer,
                credentials=credentials.find(self._reference, [self._secret]),
            )

        return push(
            self._package,
            writer=writer,
            deadline=deadline,
            state=self.state,
            monotonic=self.clock,
            sleep=self.clock.sleep,
        )


@pytest.fixture
def package(adapter: Path, tmp_path: Path) -> Package:
    (tmp_path / "work").mkdir()
    return pack(adapter, work=tmp_path / "work")


def test_a_registry_that_is_down_for_two_minutes_gets_the_adapter_at_last(
    registry_server: RegistryServer, secret: Path, package: Package
) -> None:
    waiting = Push(registry_server.running, package, secret, repository="pushed/after-two-minutes")
    told: list[str] = []

    def back() -> None:
        told.append(waiting.state.message)
        registry_server.start()

    registry_server.stop()
    waiting.clock.due = [(120.0, back)]
    try:
        digest = waiting.run()
    finally:
        if not told:
            registry_server.start()
    assert digest == package.digest
    assert len(told) == 1
    assert "does not answer" in told[0]
    assert 120 <= waiting.clock.now <= 240, "it asks again within twice the time"
    manifest = registry_server.running.read("pushed/after-two-minutes", "manifests/1")
    assert manifest["layers"][0]["digest"] == package.layer_digest


def test_a_secret_that_is_put_right_while_the_push_waits_is_read_at_the_next_try(
    registry: RunningRegistry, package: Package, tmp_path: Path
) -> None:
    secret = tmp_path / "late"
    waiting = Push(registry, package, secret, repository="pushed/late-secret")
    said: list[str] = []

    def change(content: str) -> Callable[[], None]:
        def happens() -> None:
            said.append(waiting.state.message)
            secret.write_text(content)

        return happens

    secret.write_text("no JSON")
    empty, wrong, right = '{"auths": {}}', registry.docker_config(password="wrong"), registry.docker_config()
    waiting.clock.due = [(10.0, change(empty)), (30.0, change(wrong)), (120.0, change(right))]
    assert waiting.run() == package.digest
    assert "the Secret mounted at" in said[0]
    assert "no push secret is given" in said[1]
    assert "the push secret's credentials are not accepted" in said[2]
    assert registry.password not in " ".join(said)
    assert waiting.clock.now <= 240


def test_a_push_that_was_interrupted_sends_what_is_missing(
    registry: RunningRegistry, secret: Path, package: Package
) -> None:
    """As after a kill between the layer and the manifest."""
    registry.blob("pushed/interrupted", package.layer.read_bytes(), "application/octet-stream")
    again = Push(registry, package, secret, repository="pushed/interrupted")
    assert again.run() == package.digest
    assert again.clock.waits == []


def arguments(image: str, trained: Path, secret: Path) -> tuple[str | Path, ...]:
    folders = ("--folder", trained / "adapter", "--results", trained)
    return ("push", "--image", image, *folders, "--docker-config", secret, "--port", "0")


def test_an_image_says_what_its_adapter_was_made_from(
    registry: RunningRegistry, command: Command, secret: Path, trained: Path
) -> None:
    image = f"{registry.host}/pushed/lineage:1"
    code, told = command.run(*arguments(image, trained, secret))
    assert code == 0
    manifest = registry.read("pushed/lineage", "manifests/1")
    assert manifest["annotations"] == {f"kaito.sh/{key}": value for key, value in LINEAGE.items()}
    repeated = {key: value for key, value in LINEAGE.items() if key not in ("versions", "metrics")}
    assert json.loads(told) == {
        "image": image,
        "digest": json.loads(told)["digest"],
        "metrics": {"loss": 0.25},
        "lineage": repeated,
    }


def test_a_push_that_was_done_is_done_without_sending_anything_again(
    registry: RunningRegistry, command: Command, secret: Path, trained: Path, tmp_path: Path
) -> None:
    image = f"{registry.host}/pushed/again:1"
    code, told = command.run(*arguments(image, trained, secret))
    assert code == 0
    # What may only be read needs no right to push: nothing is sent when the same digest is there.
    before = registry.read_bytes("pushed/again", "manifests/1")
    assert command.run(*arguments(image, trained, secret)) == (0, told)
    assert registry.read_bytes("pushed/again", "manifests/1") == before
    other = json.loads((trained / "adapter" / "lineage.json").read_text()) | {"seed": "43"}
    (trained / "adapter" / "lineage.json").write_text(json.dumps(other))
    code, changed = command.run(*arguments(image, trained, secret))
    assert code == 0
    assert json.loads(changed)["digest"] != json.loads(told)["digest"], "another training is another image"


def test_the_right_to_push_is_asked_of_a_real_registry(
    registry: RunningRegistry, command: Command, secret: Path, tmp_path: Path
) -> None:
    image = f"{registry.host}/asked/x:1"
    assert command.run("push-right", "--image", image, "--docker-config", secret) == (0, "")
    wrong = tmp_path / "wrong"
    wrong.write_text(registry.docker_config(password="wrong"))
    code, said = command.run("push-right", "--image", image, "--docker-config", wrong)
    assert code == 2
    assert f"pushing to {registry.host}/asked/x is refused (401)" in said


class TestEverybodysTools:
    """One image, read by the clients that our users have."""

    @pytest.fixture
    def image(self, registry: RunningRegistry, command: Command, secret: Path, trained: Path) -> str:
        image = f"{registry.host}/pushed/tools:1"
        assert command.run(*arguments(image, trained, secret))[0] == 0
        return image

    @pytest.fixture
    def expected(self) -> dict[str, bytes]:
        return FILES | {"lineage.json": json.dumps(LINEAGE).encode()}

    def test_oras_pulls_the_folder_data(
        self, registry: RunningRegistry, image: str, expected: dict[str, bytes], tmp_path: Path
    ) -> None:
        oras = pytest.importorskip("oras.client", reason="the library oras is not installed; pip install .[dev] has it")
        client: Any = oras.OrasClient(hostname=registry.host, insecure=True, auth_backend="basic")
        client.auth.set_basic_auth(registry.user, registry.password)
        client.pull(target=image, outdir=str(tmp_path / "pulled"))
        assert read(tmp_path / "pulled" / "data") == expected
        annotations = client.get_manifest(client.get_container(image))["annotations"]
        assert annotations["kaito.sh/data-digest"] == LINEAGE["data-digest"]

    def test_skopeo_inspects_and_copies_it(
        self, registry: RunningRegistry, image: str, expected: dict[str, bytes], tmp_path: Path
    ) -> None:
        skopeo = tool("skopeo")
        login = f"--src-creds={registry.user}:{registry.password}"
        run(skopeo, "copy", "--src-tls-verify=false", login, f"docker://{image}", f"oci:{tmp_path / 'copied'}:1")
        shown = json.loads(run(skopeo, "inspect", f"oci:{tmp_path / 'copied'}:1"))
        assert shown["Os"] == "linux"
        (blob,) = shown["Layers"]
        layer = tmp_path / "copied" / "blobs" / blob.replace(":", "/")
        (tmp_path / "unpacked").mkdir()
        run("tar", "-xzf", str(layer), "-C", str(tmp_path / "unpacked"))
        assert read(tmp_path / "unpacked" / "data") == expected

    def test_containerd_pulls_it_and_mounts_the_folder_data(
        self, registry: RunningRegistry, image: str, expected: dict[str, bytes], containerd: list[str], tmp_path: Path
    ) -> None:
        user = f"{registry.user}:{registry.password}"
        run(*containerd, "images", "pull", "--plain-http", "--user", user, "--snapshotter", "native", image)
        mounted = tmp_path / "mounted"
        mounted.mkdir()
        run(*containerd, "images", "mount", "--snapshotter", "native", image, str(mounted))
        try:
            assert read(mounted / "data") == expected
        finally:
            run(*containerd, "images", "unmount", str(mounted))

    @pytest.fixture
    def containerd(self, tmp_path: Path) -> Iterator[list[str]]:
        """ctr, with a containerd of its own."""
        daemon, client = tool("containerd"), tool("ctr")
        if os.geteuid() != 0:
            pytest.skip("containerd mounts images as root alone")
        address, config = tmp_path / "c.sock", tmp_path / "config.toml"
        config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
        command = [daemon, "--config", config, "--root", tmp_path / "root", "--state", tmp_path / "state"]
        with (tmp_path / "containerd.log").open("wb") as log:
            process = subprocess.Popen([*map(str, command), "--address", str(address)], stdout=log, stderr=log)
        try:
            base = [client, "--address", str(address)]
            eventually(
                lambda: subprocess.run([*base, "version"], capture_output=True, check=False).returncode == 0,
                what=(tmp_path / "containerd.log").read_text,
            )
            yield base
        finally:
            process.terminate()
            process.wait()


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name} on this machine; the local cluster's Debian packages have it")
    return found


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
