"""How a command ends: its exit code and its termination message."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path

import pytest
from tests.unit.artifacts.fake_registry import UPLOADS, FakeRegistry, layer

from kaito_hooks.artifacts.__main__ import main


@pytest.fixture
def termination_log(tmp_path: Path) -> Path:
    path = tmp_path / "termination-log"
    path.touch()
    return path


def test_an_error_that_nobody_expected_is_told_by_its_name_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, termination_log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it says may be secret; the log has where it happened."""
    monkeypatch.setenv("KAITO_REGISTRIES", '{"caBundle": ["hunter2"]}')
    arguments = ["pull", "--image", "a/b", "--destination", str(tmp_path / "d"), "--marks", str(tmp_path / "m")]
    assert main(arguments, termination_log=termination_log) == 1
    assert termination_log.read_text() == "an unexpected TypeError ended this step; its log says where"
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("token", [b"", b"a\nb", b"a b", b"\xff"])
def test_a_token_that_cannot_be_sent_is_told_without_showing_it(
    tmp_path: Path, termination_log: Path, token: bytes
) -> None:
    secret = tmp_path / "hub-token" / "token"
    secret.parent.mkdir()
    secret.write_bytes(token)
    arguments = ["weights", "--hugging-face", "org/model", "--revision", "0" * 40, "--token-file", str(secret)]
    more = ["--destination", str(tmp_path / "d"), "--marks", str(tmp_path / "m")]
    assert main([*arguments, *more], termination_log=termination_log) == 1
    told = f"the Secret mounted at {secret.parent} holds no token of one line in its key token"
    assert termination_log.read_text() == told


@pytest.fixture
def fake_host(fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("KAITO_REGISTRIES", json.dumps({"plainHTTP": [fake.host]}))
    return fake.host


@pytest.mark.parametrize(
    ("status", "body", "code", "says"),
    [
        (202, b"", 0, ""),
        (401, b"", 2, "pushing to {host}/team/model is refused (401): no push secret is given"),
        (403, b"", 2, "pushing to {host}/team/model is refused (403): no push secret is given"),
        (404, b"", 2, "{host}/team/model cannot be pushed to (404): does the repository exist?"),
        (400, b'{"errors": [{"code": "NAME_INVALID", "message": "no"}]}', 2, "NAME_INVALID no"),
        (405, b"", 2, "it takes no pushes"),
        (429, b"", 1, "answered 429"),
        (503, b"", 1, "answered 503"),
    ],
)
def test_the_right_to_push_is_refused_for_good_by_an_answer_and_not_by_a_registry_in_trouble(
    fake: FakeRegistry, fake_host: str, termination_log: Path, status: int, body: bytes, code: int, says: str
) -> None:
    fake.overrides[("POST", UPLOADS)] = (status, {"Location": f"{UPLOADS}1"}, body)
    assert main(["push-right", "--image", f"{fake_host}/team/model:1"], termination_log=termination_log) == code
    assert says.format(host=fake_host) in termination_log.read_text()
    assert (("DELETE", f"{UPLOADS}1") in {(r.method, r.path) for r in fake.requests}) is (code == 0)


@pytest.mark.parametrize("image", ["{host}/Team/model:1", "{host}/team/model@sha256:" + "0" * 64])
def test_an_image_that_no_registry_takes_is_refused_before_one_is_asked(
    fake: FakeRegistry, fake_host: str, termination_log: Path, image: str
) -> None:
    assert main(["push-right", "--image", image.format(host=fake_host)], termination_log=termination_log) == 2
    assert termination_log.read_text()
    assert fake.requests == []


def test_a_registry_that_nobody_reaches_may_be_asked_again(
    monkeypatch: pytest.MonkeyPatch, termination_log: Path
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("KAITO_REGISTRIES", json.dumps({"plainHTTP": [host]}))
        assert main(["push-right", "--image", f"{host}/team/model:1"], termination_log=termination_log) == 1
    assert "does not answer" in termination_log.read_text()


def test_a_secret_without_a_password_for_the_registry_is_told_before_anything_is_paid_for(
    fake_host: str, tmp_path: Path, termination_log: Path
) -> None:
    secret = tmp_path / "team-push" / ".dockerconfigjson"
    secret.parent.mkdir()
    secret.write_text(json.dumps({"auths": {fake_host: {"auth": "!"}}}))
    arguments = ["push-right", "--image", f"{fake_host}/team/model:1", "--docker-config", str(secret)]
    assert main(arguments, termination_log=termination_log) == 2
    assert f"the Secret mounted at {secret.parent}" in termination_log.read_text()


CONFIG = b'{"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}'
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SMALL = {
    "config.json": CONFIG,
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b'{"eos_token": "</s>"}',
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors.index.json": json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode(),
}
REVISION = "0" * 40


class Model:
    """A model behind both doors: an image's layers and a hub's repository."""

    def __init__(self, fake: FakeRegistry, folder: Path, termination_log: Path) -> None:
        self._fake = fake
        self._termination_log = termination_log
        self.destination = folder / "weights"
        self._marks = folder / "marks"

    def offer(self, files: dict[str, bytes]) -> None:
        self._fake.image("1", *(layer(f"workspace/tfs/weights/{name}", data) for name, data in files.items()))
        siblings = []
        for name, data in files.items():
            blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
            siblings.append({"rfilename": name, "size": len(data), "blobId": blob})
            self._fake.paths[f"/org/model/resolve/{REVISION}/{name}"] = (200, {}, data)
        listing = json.dumps({"siblings": siblings}).encode()
        self._fake.paths[f"/api/models/org/model/revision/{REVISION}"] = (200, {}, listing)

    def bring(self, source: str) -> tuple[int, str]:
        self._termination_log.write_text("")
        door = {
            "image": ["--image", f"{self._fake.host}/team/model:1"],
            "hub": ["--hugging-face", "org/model", "--revision", REVISION],
            "volume": ["--volume", str(self.destination)],
        }
        arguments = [*door[source], "--architecture", "Phi3ForCausalLM"]
        arguments += ["--destination", str(self.destination), "--marks", str(self._marks)]
        return main(["tokenizer", *arguments], termination_log=self._termination_log), self._termination_log.read_text()


@pytest.fixture
def model(
    fake: FakeRegistry, fake_host: str, tmp_path: Path, termination_log: Path, monkeypatch: pytest.MonkeyPatch
) -> Model:
    monkeypatch.setenv("HF_ENDPOINT", f"http://{fake_host}")
    return Model(fake, tmp_path, termination_log)


both_doors = pytest.mark.parametrize("source", ["image", "hub"])


@both_doors
def test_a_tokenizer_comes_without_the_weights_beside_it(model: Model, fake: FakeRegistry, source: str) -> None:
    weights = dict.fromkeys((*SHARDS, "consolidated.safetensors", "pytorch_model.bin", "phi.py"), b"tensors")
    model.offer(SMALL | weights)
    assert model.bring(source) == (0, "")
    assert {p.name: p.read_bytes() for p in model.destination.iterdir()} == SMALL
    asked = len(fake.requests)
    assert model.bring(source) == (0, "")
    assert len(fake.requests) == asked, "a second run asks for nothing"
    assert not any("resolve" in r.path and r.path.endswith(".safetensors") for r in fake.requests)


@both_doors
@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"config.json": CONFIG, SHARDS[0]: b""}, "holds no tokenizer"),
        (SMALL | {SHARDS[0]: b""}, f"is incomplete: {SHARDS[1]} of its index is missing"),
        ({"config.json": CONFIG, "tokenizer.json": b"{}"}, "holds no weights"),
        (
            {"config.json": CONFIG, "tokenizer.json": b"{}", "pytorch_model.bin": b""},
            "holds pickled weights only (pytorch_model.bin)",
        ),
        (SMALL | {"config.json": b'{"architectures": ["GPT2LMHeadModel"]}'}, "the preset needs Phi3ForCausalLM"),
    ],
    ids=["no tokenizer", "a shard is missing", "no weights", "pickled", "another architecture"],
)
def test_a_model_that_cannot_be_tuned_is_refused_by_its_small_files(
    model: Model, files: dict[str, bytes], source: str, says: str
) -> None:
    model.offer(files)
    code, told = model.bring(source)
    assert code == 2
    assert says in told


def test_a_model_on_a_volume_is_looked_at_where_it_lies(model: Model) -> None:
    model.destination.mkdir()
    for name, data in (SMALL | dict.fromkeys(SHARDS, b"")).items():
        (model.destination / name).write_bytes(data)
    assert model.bring("volume") == (0, "")
    (model.destination / SHARDS[1]).unlink()
    code, told = model.bring("volume")
    assert code == 2
    assert "is incomplete" in told
