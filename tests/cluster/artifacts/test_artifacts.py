"""Init-container commands against a real registry, run as the Pod runs them."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import urllib3
from tests.cluster.artifacts.command import ADAPTER, WEIGHTS, Command, tensors
from tests.cluster.artifacts.registry_fixture import INDEX, MANIFEST, RunningRegistry, tar
from tests.eventually import PATIENCE, eventually

from kaito_local.machine.ports import free_ports

ARCHITECTURE = "Phi3ForCausalLM"
CONFIG_JSON = json.dumps({"architectures": [ARCHITECTURE], "model_type": "phi3"}).encode()
FOLDER = "workspace/tfs/weights"


MODEL = {f"{FOLDER}/config.json": CONFIG_JSON, f"{FOLDER}/model.safetensors": WEIGHTS, "usr/bin/python": b"no"}


@pytest.mark.parametrize("compress", ["gzip", "zstd", "none"])
def test_weights_come_out_of_an_image_however_its_layers_are_packed(
    registry: RunningRegistry, command: Command, secret: Path, compress: str
) -> None:
    registry.image(f"models/{compress}", "1", tar(MODEL), compress=compress)
    image = f"{registry.host}/models/{compress}:1"
    code, said = command.run("weights", "--image", image, "--architecture", ARCHITECTURE, "--docker-config", secret)
    assert (code, said) == (0, "")
    assert command.files() == {"config.json": CONFIG_JSON, "model.safetensors": WEIGHTS}


def test_a_second_run_fetches_nothing(registry: RunningRegistry, command: Command, secret: Path) -> None:
    registry.image("models/twice", "1", tar(MODEL))
    arguments = ("weights", "--image", f"{registry.host}/models/twice:1", "--docker-config", secret)
    assert command.run(*arguments)[0] == 0
    stamp = (command.destination / "model.safetensors").stat().st_mtime_ns
    assert command.run(*arguments)[0] == 0
    assert "is there already" in command.said
    assert (command.destination / "model.safetensors").stat().st_mtime_ns == stamp


def test_an_image_cannot_say_of_itself_that_it_was_checked(
    registry: RunningRegistry, command: Command, secret: Path
) -> None:
    image = f"{registry.host}/models/marked:1"
    source = json.dumps({"source": f"image {image}", "digest": None, "files": []}).encode()
    files = {f"{FOLDER}/config.json": CONFIG_JSON, f"{FOLDER}/pytorch_model.bin": b"\x80"}
    marks = {f"{FOLDER}/.kaito-complete.json": source, f"{FOLDER}/{command.marks.name}/x.json": source}
    registry.image("models/marked", "1", tar(files | marks))
    for _ in range(2):
        code, said = command.run("weights", "--image", image, "--docker-config", secret)
        assert code == 2
        assert "pickled weights only" in said


def test_a_folder_that_lost_a_file_is_filled_again(registry: RunningRegistry, command: Command, secret: Path) -> None:
    registry.image("models/lost", "1", tar(MODEL))
    arguments = ("weights", "--image", f"{registry.host}/models/lost:1", "--docker-config", secret)
    assert command.run(*arguments)[0] == 0
    (command.destination / "model.safetensors").unlink()
    assert command.run(*arguments)[0] == 0
    assert command.files()["model.safetensors"] == WEIGHTS


def test_later_layers_replace_and_remove_files_of_earlier_ones(
    registry: RunningRegistry, command: Command, secret: Path
) -> None:
    second = {f"{FOLDER}/.wh.notes.txt": b"", f"{FOLDER}/model.safetensors": tensors(seed=1)}
    first = MODEL | {f"{FOLDER}/notes.txt": b"old", f"{FOLDER}/old/config.json": b"{}"}
    third = {f"{FOLDER}/old/.wh..wh..opq": b"", f"{FOLDER}/old/new.txt": b"new"}
    registry.image("models/layers", "1", tar(first), tar(second), tar(third))
    code, said = command.run("weights", "--image", f"{registry.host}/models/layers:1", "--docker-config", secret)
    assert (code, said) == (0, "")
    assert command.files() == {
        "config.json": CONFIG_JSON,
        "model.safetensors": tensors(seed=1),
        "old/new.txt": b"new",
    }


@pytest.mark.parametrize("platforms", [("arm64", "amd64"), (None, "amd64"), ("arm64",), (None,)])
def test_an_index_leads_to_its_amd64_image_or_to_what_there_is(
    registry: RunningRegistry, command: Command, secret: Path, platforms: tuple[str | None, ...]
) -> None:
    other = tar({"x": b"y"})
    pushed = [registry.image("models/index", f"{n}", other) for n in range(len(platforms) - 1)]
    pushed.append(registry.image("models/index", "wanted", tar(MODEL)))
    manifests = [
        {"mediaType": MANIFEST, "digest": digest, "size": 1}
        | ({"platform": {"os": "linux", "architecture": architecture}} if architecture else {})
        for digest, architecture in zip(pushed, platforms, strict=True)
    ]
    registry.manifest("models/index", "1", {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
    code, said = command.run("weights", "--image", f"{registry.host}/models/index:1", "--docker-config", secret)
    assert (code, said) == (0, "")
    assert sorted(command.files()) == ["config.json", "model.safetensors"]


def test_a_mirror_is_asked_before_the_registry(registry: RunningRegistry, command: Command, secret: Path) -> None:
    """This mirror wants credentials, and gets none: those of the registry are not sent to it."""
    registry.image("models/mirrored", "1", tar(MODEL))
    command.registries["mirrors"] = {registry.host: f"http://{registry.host}/mirror"}
    arguments = ("weights", "--docker-config", secret, "--image")
    assert command.run(*arguments, f"{registry.host}/models/mirrored:1") == (0, "")
    code, said = command.run(*arguments, f"{registry.host}/models/nowhere:1")
    assert code == 1
    assert f"there is no image {registry.host}/models/nowhere:1" in said
    assert f"asked its mirror before: http://{registry.host} answered 401" in said


BROKEN = {
    "no config": ({"usr/x": b""}, "there is no config.json"),
    "no weights": ({f"{FOLDER}/config.json": CONFIG_JSON}, "there is no *.safetensors"),
    "pickled": (
        {f"{FOLDER}/config.json": CONFIG_JSON, f"{FOLDER}/pytorch_model.bin": b"\x80"},
        "pickled weights only (pytorch_model.bin)",
    ),
    "another architecture": (
        MODEL | {f"{FOLDER}/config.json": b'{"architectures": ["GPT2LMHeadModel"]}'},
        "holds a model of architecture GPT2LMHeadModel, but the preset needs Phi3ForCausalLM",
    ),
    "an incomplete index": (
        MODEL | {f"{FOLDER}/model.safetensors.index.json": b'{"weight_map": {"a": "m-2.safetensors"}}'},
        "m-2.safetensors of its index is missing",
    ),
}


@pytest.mark.parametrize(("files", "sentence"), BROKEN.values(), ids=BROKEN)
def test_a_bad_model_image_is_refused_for_good(
    registry: RunningRegistry, command: Command, secret: Path, files: dict[str, bytes], sentence: str
) -> None:
    registry.image("models/bad", "1", tar(dict(files)))
    image = f"{registry.host}/models/bad:1"
    code, said = command.run("weights", "--image", image, "--architecture", ARCHITECTURE, "--docker-config", secret)
    assert code == 2
    assert sentence in said
    assert "\n" not in said


def test_a_link_out_of_the_folder_is_refused(registry: RunningRegistry, command: Command, secret: Path) -> None:
    registry.image("models/link", "1", tar(dict(MODEL), links={f"{FOLDER}/x.safetensors": "/etc/passwd"}))
    code, said = command.run("weights", "--image", f"{registry.host}/models/link:1", "--docker-config", secret)
    assert code == 2
    assert "is a link to '/etc/passwd'" in said


def test_a_link_within_the_folder_is_kept(registry: RunningRegistry, command: Command, secret: Path) -> None:
    files = {f"{FOLDER}/config.json": CONFIG_JSON, f"{FOLDER}/blobs/abc": WEIGHTS}
    registry.image("models/inner", "1", tar(files, links={f"{FOLDER}/model.safetensors": "blobs/abc"}))
    code, said = command.run("weights", "--image", f"{registry.host}/models/inner:1", "--docker-config", secret)
    assert (code, said) == (0, "")
    assert command.files()["model.safetensors"] == WEIGHTS


def test_a_cut_safetensors_file_may_be_tried_again(registry: RunningRegistry, command: Command, secret: Path) -> None:
    registry.image("models/cut", "1", tar(MODEL | {f"{FOLDER}/model.safetensors": WEIGHTS[:-5]}))
    code, said = command.run("weights", "--image", f"{registry.host}/models/cut:1", "--docker-config", secret)
    assert code == 1
    assert "but its header announces" in said


@pytest.mark.parametrize(
    ("password", "sentence"),
    [("wrong", "the pull secret's credentials are not accepted"), (None, "no pull secret is given for it")],
)
def test_missing_access_is_told_in_a_sentence_without_the_password(
    registry: RunningRegistry, command: Command, tmp_path: Path, password: str | None, sentence: str
) -> None:
    arguments: list[str | Path] = ["pull", "--image", f"{registry.host}/private/x:1"]
    if password:
        secret = tmp_path / "wrong"
        secret.write_text(registry.docker_config(password=password))
        arguments += ["--docker-config", secret]
    code, said = command.run(*arguments)
    assert code == 1
    assert f"{registry.host} refuses access to private/x (401): {sentence}" in said
    assert registry.password not in command.said
    assert "wrong" not in said


def test_an_adapter_is_pulled_by_tag_and_by_digest(registry: RunningRegistry, command: Command, secret: Path) -> None:
    digest = registry.image("adapters/a", "v1", tar(dict(ADAPTER)))
    for image in (f"{registry.host}/adapters/a:v1", f"{registry.host}/adapters/a@{digest}"):
        code, said = command.run("pull", "--image", image, "--docker-config", secret)
        assert (code, said) == (0, "")
        assert sorted(command.files()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_an_adapter_pushed_as_plain_files_is_pulled_too(
    registry: RunningRegistry, command: Command, secret: Path
) -> None:
    layers = [
        registry.blob(
            "adapters/files",
            data,
            "application/octet-stream",
            annotations={"org.opencontainers.image.title": name.removeprefix("data/")},
        )
        for name, data in ADAPTER.items()
    ]
    empty = registry.blob("adapters/files", b"{}", "application/vnd.oci.empty.v1+json")
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": empty, "layers": layers}
    registry.manifest("adapters/files", "1", document)
    code, said = command.run("pull", "--image", f"{registry.host}/adapters/files:1", "--docker-config", secret)
    assert (code, said) == (0, "")
    assert sorted(command.files()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_pickles_beside_safetensors_stay_where_they_are(
    registry: RunningRegistry, command: Command, secret: Path
) -> None:
    files = ADAPTER | {"data/training_args.bin": b"\x80", "data/optimizer.pt": b"\x80"}
    registry.image("adapters/both", "1", tar(dict(files)))
    code, said = command.run("pull", "--image", f"{registry.host}/adapters/both:1", "--docker-config", secret)
    assert (code, said) == (0, "")
    assert sorted(command.files()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_weights_come_once_and_never_pickled(registry: RunningRegistry, command: Command, secret: Path) -> None:
    """Upstream's images hold the same tensors several times."""
    more = ("pytorch_model.bin", "consolidated.00.pth", "consolidated.safetensors", "original/tokenizer.model")
    registry.image("models/more", "1", tar(MODEL | {f"{FOLDER}/{name}": b"\x80" for name in more}))
    code, said = command.run("weights", "--image", f"{registry.host}/models/more:1", "--docker-config", secret)
    assert (code, said) == (0, "")
    assert sorted(command.files()) == ["config.json", "model.safetensors"]


def test_data_may_be_called_as_it_likes(registry: RunningRegistry, command: Command, secret: Path) -> None:
    registry.image("sets/names", "1", tar({"data/train.bin": b"x", "data/original/a.jsonl": b"{}"}))
    assert command.run("data", "--image", f"{registry.host}/sets/names:1", "--docker-config", secret) == (0, "")
    assert sorted(command.files()) == ["original/a.jsonl", "train.bin"]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"data/readme": b""}, "is no adapter: adapter_config.json and adapter_model.safetensors missing"),
        (
            {"data/adapter_config.json": b'{"peft_type": "LORA"}', "data/adapter_model.bin": b""},
            "pickled weights only (adapter_model.bin)",
        ),
        (ADAPTER | {"data/adapter_config.json": b'{"peft_type": "IA3"}'}, "only LORA can be served"),
    ],
    ids=["something else", "pickled", "another kind"],
)
def test_what_is_no_adapter_is_refused(
    registry: RunningRegistry, command: Command, secret: Path, files: dict[str, bytes], sentence: str
) -> None:
    registry.image("adapters/bad", "1", tar(dict(files)))
    code, said = command.run("pull", "--image", f"{registry.host}/adapters/bad:1", "--docker-config", secret)
    assert code == 2
    assert sentence in said


def test_an_image_that_does_not_exist_is_told(registry: RunningRegistry, command: Command, secret: Path) -> None:
    code, said = command.run("pull", "--image", f"{registry.host}/none/x:1", "--docker-config", secret)
    assert code == 1
    assert f"there is no image {registry.host}/none/x:1" in said


@pytest.mark.parametrize("image", ["UPPER/x:1", "a b", "x@sha256:12", "host:5000/x:ta/g", ""])
def test_a_bad_reference_is_told_before_anything_is_asked(command: Command, image: str) -> None:
    code, said = command.run("pull", "--image", image)
    assert code == 2
    assert repr(image) in said


def test_memory_does_not_grow_with_the_layer(registry: RunningRegistry, command: Command, secret: Path) -> None:
    big = tensors(size=400_000)
    assert len(big) > 100e6
    registry.image("models/big", "1", tar(MODEL | {f"{FOLDER}/model.safetensors": big}), compress="none")
    script = (
        "import re, sys; from kaito_hooks.artifacts.__main__ import main; code = main(sys.argv[1:]);"
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); sys.exit(code)"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            "weights",
            "--image",
            f"{registry.host}/models/big:1",
            "--docker-config",
            str(secret),
            *("--destination", str(command.destination), "--marks", str(command.marks)),
        ],
        env=os.environ | {"KAITO_REGISTRIES": json.dumps(command.registries)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert command.files()["model.safetensors"] == big
    assert int(done.stdout) < 80 * 1024, f"{done.stdout} KiB"


def test_what_is_pushed_is_pulled_again_and_is_the_same_every_time(
    registry: RunningRegistry, command: Command, secret: Path, adapter: Path
) -> None:
    image = f"{registry.host}/pushed/a:1"
    arguments = ("push", "--image", image, "--folder", adapter, "--docker-config", secret, "--port", "0")
    code, told = command.run(*arguments)
    assert code == 0
    digest = json.loads(told)["digest"]
    assert digest.startswith("sha256:")
    assert json.loads(told) == {"image": image, "digest": digest, "metrics": {}}
    assert "Upload complete" in command.said
    assert command.run(*arguments) == (0, told)
    by_digest = f"{registry.host}/pushed/a@{digest}"
    assert command.run("pull", "--image", by_digest, "--docker-config", secret) == (0, "")
    assert command.files() == {Path(name).name: data for name, data in ADAPTER.items()}


def test_a_push_takes_what_the_training_left_and_nothing_before_it_is_done(
    registry: RunningRegistry, command: Command, secret: Path, adapter: Path
) -> None:
    image = f"{registry.host}/pushed/c:1"
    arguments = ("push", "--image", image, "--folder", adapter, "--results", adapter.parent, "--docker-config", secret)
    code, said = command.run(*arguments, "--port", "0")
    assert code == 1
    assert "there is nothing to push yet" in said
    (adapter.parent / "fine_tuning_completed.txt").write_text("done")
    (adapter.parent / "progress.json").write_text(json.dumps({"phase": "Done", "metrics": {"loss": 0.25, "x": None}}))
    code, told = command.run(*arguments, "--port", "0")
    assert code == 0
    assert json.loads(told)["metrics"] == {"loss": 0.25}


def test_a_pushed_adapter_is_an_image_for_image_tools(
    registry: RunningRegistry, command: Command, secret: Path, adapter: Path
) -> None:
    image = f"{registry.host}/pushed/b:1"
    command.run("push", "--image", image, "--folder", adapter, "--docker-config", secret, "--port", "0")
    manifest = registry.read("pushed/b", "manifests/1")
    config = registry.read("pushed/b", f"blobs/{manifest['config']['digest']}")
    (layer,) = manifest["layers"]
    packed = registry.read_bytes("pushed/b", f"blobs/{layer['digest']}")
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(gzip.decompress(packed)).hexdigest()}"]
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        assert archive.getnames() == ["data", "data/adapter_config.json", "data/adapter_model.safetensors"]
        assert {(m.uid, m.gid, m.mtime) for m in archive} == {(0, 0, 0)}


def test_whether_an_image_may_be_pushed_is_known_before_the_training(
    registry: RunningRegistry, command: Command, secret: Path, tmp_path: Path
) -> None:
    image = f"{registry.host}/checked/x:1"
    assert command.run("check", "--image", image, "--docker-config", secret) == (0, "")
    wrong = tmp_path / "wrong"
    wrong.write_text(registry.docker_config(password="wrong"))
    code, said = command.run("check", "--image", image, "--docker-config", wrong)
    assert code == 1
    assert f"pushing to {registry.host}/checked/x is refused (401)" in said
    code, said = command.run("check", "--image", f"{registry.host}/checked/x@sha256:{'0' * 64}")
    assert code == 2
    assert "has no tag to push to" in said


def test_a_check_that_succeeded_is_not_repeated_for_the_same_image(
    registry: RunningRegistry, command: Command, secret: Path, tmp_path: Path
) -> None:
    """A new sandbox after the training runs the step again, when the registry or the secret may have changed."""
    wrong, results = tmp_path / "wrong", tmp_path / "results"
    wrong.write_text(registry.docker_config(password="wrong"))
    results.mkdir()
    image, other = (f"{registry.host}/checked/{name}:1" for name in ("once", "other"))

    def check(image: str, secret: Path) -> int:
        return command.run("check", "--image", image, "--results", results, "--docker-config", secret)[0]

    assert check(image, wrong) == 1
    assert check(image, wrong) == 1, "a failed check is no check"
    assert check(image, secret) == 0
    assert check(image, wrong) == 0
    assert check(other, wrong) == 1


def test_a_push_waits_for_a_registry_that_does_not_take_it_and_says_why(
    registry: RunningRegistry, command: Command, tmp_path: Path, adapter: Path
) -> None:
    """The secret is put right while the push waits: it is read again at the next try."""
    secret = tmp_path / "late"
    secret.write_text(registry.docker_config(password="wrong"))
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "kaito_hooks.artifacts", "push", "--image", f"{registry.host}/late/x:1"),
            *("--folder", str(adapter), "--docker-config", str(secret), "--port", str(port)),
        ],
        env=os.environ | {"KAITO_REGISTRIES": json.dumps(command.registries)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:

        def progress() -> dict[str, str] | None:
            told: dict[str, str] = urllib3.request("GET", f"http://127.0.0.1:{port}/progress", retries=False).json()
            return told if told["message"] else None

        told = eventually(progress, every=0.1, despite=urllib3.exceptions.HTTPError)
        assert told is not None
        assert told["phase"] == "Pushing"
        assert "refuse" in told["message"]
        secret.write_text(registry.docker_config())
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
        assert "Upload complete" in said
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_a_push_gives_up_at_its_deadline(
    registry: RunningRegistry, command: Command, tmp_path: Path, adapter: Path
) -> None:
    code, said = command.run(
        "push", "--image", f"{registry.host}/never/x:1", "--folder", adapter, "--deadline", "1s", "--port", "0"
    )
    assert code == 2
    assert "gave up pushing" in said


def test_what_is_no_adapter_is_not_pushed(
    registry: RunningRegistry, command: Command, secret: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    image = f"{registry.host}/pushed/none:1"
    code, said = command.run(
        "push", "--image", image, "--folder", tmp_path / "empty", "--docker-config", secret, "--port", "0"
    )
    assert code == 2
    assert "is no adapter" in said


def test_training_data_comes_out_of_an_image(registry: RunningRegistry, command: Command, secret: Path) -> None:
    registry.image("sets/a", "1", tar({"data/train.jsonl": b"{}\n", "etc/x": b""}))
    arguments = ("data", "--image", f"{registry.host}/sets/a:1", "--docker-config", secret)
    assert command.run(*arguments) == (0, "")
    assert command.files() == {"train.jsonl": b"{}\n"}
    registry.image("sets/b", "1", tar({"etc/x": b""}))
    code, said = command.run("data", "--image", f"{registry.host}/sets/b:1", "--docker-config", secret)
    assert code == 2
    assert "holds no data" in said


def test_training_data_is_not_downloaded_from_private_addresses_unless_allowed(
    registry: RunningRegistry, command: Command
) -> None:
    url = f"http://{registry.host}/train.csv?token=secret"
    code, said = command.run("data", "--url", url)
    assert code == 2
    assert "private address 127.0.0.1" in said
    code, said = command.run("data", "--url", url, "--allow-private", "127.0.0.0/8")
    assert code == 1
    assert "Failed to download" in said
    assert "secret" not in command.said
