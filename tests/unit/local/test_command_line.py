"""What the `kaito` command does before it touches the machine."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

import pytest

from kaito_local.cluster import preflight
from kaito_local.cluster.charts import local_values, user_values
from kaito_local.cluster.local_cluster import LocalCluster
from kaito_local.cluster.state import State, cluster_folder, register_cluster, registered_clusters
from kaito_local.commands import aks
from kaito_local.commands.__main__ import main
from kaito_local.commands.env import shell_lines
from kaito_local.errors import MissingPrerequisite, UsageError
from kaito_local.images.weights import model_images, parse_weights
from kaito_local.machine.folders import cache_folder, state_home

ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAITO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_state_and_cache_lie_where_the_environment_says() -> None:
    assert state_home({"KAITO_HOME": "/x"}) == Path("/x")
    assert state_home({}) == Path.home() / ".local/state/kaito"
    assert cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/kaito")
    assert cache_folder({}) == Path.home() / ".cache/kaito"


@pytest.mark.parametrize("name", ["", "../etc", "a/b", "Kaito", "-a", "a" * 33, "a b"])
def test_a_name_that_is_no_folders_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a cluster's name"):
        cluster_folder(name)


def test_what_a_cluster_remembers_is_read_back(tmp_path: Path) -> None:
    state = State().save(tmp_path, ports=(1, 2, 3), weights={"phi-2": "/w"}, charts="abc", control_plane_only=True)
    assert State.load(tmp_path) == state
    assert State.load(tmp_path / "nowhere") is None


def test_clusters_that_use_the_cache_are_known_until_their_folder_is_gone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        register_cluster(tmp_path / name, cache=tmp_path / "cache")
    (tmp_path / "one").rmdir()
    assert registered_clusters(cache=tmp_path / "cache") == [tmp_path / "two"]


@pytest.mark.parametrize("command", [["env"], ["aks", "pools"]])
def test_a_cluster_that_was_never_up_is_named_in_one_line(
    home: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--name", "nobody"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "nobody" in said.err


def test_status_of_a_cluster_that_was_never_up_is_no_success(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--name", "nobody"]) == 3
    assert capsys.readouterr().out == "nobody: never started\n"


def test_down_of_a_cluster_that_was_never_up_is_no_error(home: Path) -> None:
    assert main(["down", "--name", "nobody"]) == 0
    assert not (home / "nobody").exists()


def test_what_belongs_to_somebody_else_is_named_in_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(directory: Path) -> State | None:
        raise PermissionError(13, "Permission denied", str(directory / "state.json"))

    monkeypatch.setattr(State, "load", refuse)
    assert main(["status", "--name", "theirs"]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert f"{home}/theirs/state.json is not yours to use" in said.err


def test_the_lines_of_env_survive_a_shell_whatever_the_folder_is_called(tmp_path: Path) -> None:
    directory = tmp_path / "it's a $HOME folder"
    State().save(directory, control_plane_only=True)
    (directory / "kubeconfig").write_text("")
    lines = shell_lines(LocalCluster(directory))
    script = f'set -eu\n{lines}{lines}printf "%s\\n" "$KUBECONFIG" "$PATH"'
    said = subprocess.run(["sh", "-c", script], env={"PATH": "/usr/bin"}, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == [f"{directory}/kubeconfig", f"{directory}/bin:/usr/bin"]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["throttled", "--times", "3"], {"name": "throttled", "times": 3}),
        (["throttled", "--times", "0", "--pool", "ws*"], {"name": "throttled", "times": None, "pool": "ws*"}),
        (
            ["--status", "400", "--code", "A", "--message", "b"],
            {"method": "PUT", "status": 400, "body": {"error": {"code": "A", "message": "b"}}},
        ),
        (
            ["--async", "--code", "AllocationFailed", "--message", "none"],
            {"method": "PUT", "error": {"code": "AllocationFailed", "message": "none"}},
        ),
    ],
)
def test_a_fault_is_what_its_options_say(options: list[str], fault: dict[str, object]) -> None:
    parser = argparse.ArgumentParser()
    aks.add_arguments(parser)
    assert aks.fault_of(parser.parse_args(["fault", *options])) == fault


@pytest.mark.parametrize("options", [[], ["--code", "A"], ["--async"], ["--times", "2"]])
def test_a_fault_that_says_nothing_is_refused(options: list[str]) -> None:
    parser = argparse.ArgumentParser()
    aks.add_arguments(parser)
    with pytest.raises(UsageError):
        aks.fault_of(parser.parse_args(["fault", *options]))


def test_labels_are_given_as_pairs() -> None:
    assert aks.labels_of(["team=vision", "empty=", "a/b=c=d"]) == {"team": "vision", "empty": "", "a/b": "c=d"}
    for wrong in ("team", "=vision"):
        with pytest.raises(UsageError, match="KEY=VALUE"):
            aks.labels_of([wrong])


def test_a_quota_is_set_changed_and_lifted() -> None:
    assert aks.with_quota({"a": 1}, "b=6") == {"a": 1, "b": 6}
    assert aks.with_quota({"a": 1}, "a=0") == {"a": 0}
    assert aks.with_quota({"a": 1}, "a=none") == {}
    with pytest.raises(UsageError, match="FAMILY=VCPUS"):
        aks.with_quota({}, "a=many")


def test_values_and_settings_go_to_the_chart_that_they_name(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text("kaito: {workers: 8}\n")
    values, sets = user_values([file], ["gpu-provisioner.provisioner.nodeRepairTimeout=15s"])
    assert values == {"kaito": [{"workers": 8}], "gpu-provisioner": []}
    assert sets == {"kaito": [], "gpu-provisioner": ["provisioner.nodeRepairTimeout=15s"]}


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        ("workers: 8", [], "top-level keys must be the charts' names"),
        ("[1, 2]", [], "top-level keys must be the charts' names"),
        ("{", [], "values.yaml"),
        ("", ["workers=8"], "write CHART.PATH=VALUE"),
        ("", ["kaito.workers"], "write CHART.PATH=VALUE"),
    ],
)
def test_values_for_no_chart_are_refused(tmp_path: Path, content: str, settings: list[str], said: str) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=said):
        user_values([file], settings)


def test_presets_with_a_model_image_are_those_of_the_catalogue() -> None:
    found = model_images(ROOT / "presets")
    assert found["phi-3-mini-4k-instruct"].architecture == "Phi3ForCausalLM"
    assert found["phi-3-mini-4k-instruct"].path == "/workspace/tfs/weights"
    assert "falcon-7b" in found


def test_weights_name_a_preset_and_a_folder(tmp_path: Path) -> None:
    assert parse_weights([f"phi-2={tmp_path}"], known=["phi-2"]) == {"phi-2": tmp_path}


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("phi-2", "write PRESET=FOLDER"),
        ("phi-9=/tmp", "there is no preset phi-9"),
        ("phi-2=/no/such/folder", "/no/such/folder is not a folder"),
    ],
)
def test_weights_that_cannot_be_are_refused(option: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_weights([option], known=["phi-2"])


def test_too_little_memory_is_said_with_both_numbers(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8388608 kB\nMemAvailable: 1048576 kB\n")
    with pytest.raises(MissingPrerequisite, match=r"needs 4 GiB of free memory, this machine has 1\.0"):
        preflight.require_memory(meminfo=meminfo)
    preflight.require_memory(gib=0.5, meminfo=meminfo)


def test_too_little_disk_is_said_with_the_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingPrerequisite, match="needs 1000000 GiB of free disk"):
        preflight.require_disk(tmp_path / "not" / "yet", gib=1e6)


def test_without_root_and_without_sudo_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingPrerequisite, match="nodes need root"):
        preflight.become_root(["up"])


def test_local_mode_changes_only_the_values_that_the_design_lists() -> None:
    from kaito_local.cluster.charts import Cloud

    cloud = Cloud("https://e", "https://e/", "PEM", "s", "t", "c", "g", "n", "l")
    values = local_values(cloud=cloud, mirrors={}, plain_http=[], network="172.31.77.0/24")
    assert set(values["kaito"]) == {"registries", "serving", "tuning", "nvidiaDevicePlugin", "timeouts"}
    assert set(values["gpu-provisioner"]) == {"settings", "azure", "workloadIdentity", "provisioner"}
