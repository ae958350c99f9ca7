from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.eventually import PATIENCE, eventually

from kaito_local.errors import BuildError, MissingPrerequisite
from kaito_local.machine import gotools
from kaito_local.machine.gomodules import catalogue
from kaito_local.machine.progress import Progress

TOOLS = Path(__file__).parents[3] / "tools"


@pytest.fixture
def small_tools(tmp_path: Path) -> Path:
    """A ``tools`` folder of one program, ``hello``, that is compiled in seconds."""
    module = tmp_path / "tools" / "hello"
    (module / "library").mkdir(parents=True)
    (module / "library" / "go.mod").write_text("module example.com/library\n\ngo 1.24\n")
    (module / "library" / "library.go").write_text('package library\n\nconst Greeting = "hello"\n')
    (module / "go.mod").write_text(
        "module example.com/tools/hello\n\ngo 1.24\n\ntool example.com/tools/hello\n\n"
        "require example.com/library v1.2.3\n\nreplace example.com/library => ./library\n"
    )
    (module / "go.sum").write_text("")
    source = 'package main\n\nimport "example.com/library"\n\nfunc main() { println(library.Greeting) }\n'
    (module / "main.go").write_text(source)
    return module.parent


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build cache that a test may name as its user's."""
    return tmp_path_factory.mktemp("go-cache")


def test_a_program_is_built_once_and_only_the_binary_stays(
    small_tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOCACHE", raising=False)
    told = io.StringIO()
    cache = tmp_path / "cache"
    progress = Progress(told, log_every=0.05)
    path = gotools.ensure(["hello"], tools=small_tools, cache=cache, progress=progress)["hello"]
    done = subprocess.run([path], capture_output=True, text=True, check=True, timeout=30)
    assert done.stderr == "hello\n"
    assert " packages · " in told.getvalue()
    assert not (cache / "go-build").exists()
    assert progress.summary()[0].startswith("Go programs: built hello (")
    again = Progress(io.StringIO())
    assert gotools.ensure(["hello"], tools=small_tools, cache=cache, progress=again) == {"hello": path}
    assert again.summary() == ["Go programs: reused hello"]


def test_a_changed_source_is_built_beside_the_old_program(
    small_tools: Path, tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOCACHE", str(compiled))
    old = gotools.ensure(["hello"], tools=small_tools, cache=tmp_path)["hello"]
    (small_tools / "hello" / "library" / "library.go").write_text('package library\n\nconst Greeting = "hi"\n')
    new = gotools.ensure(["hello"], tools=small_tools, cache=tmp_path)["hello"]
    assert old != new
    said = [subprocess.run([path], capture_output=True, text=True, check=True).stderr for path in (old, new)]
    assert said == ["hello\n", "hi\n"]
    assert any(compiled.iterdir())


def test_a_failed_build_ends_with_the_words_of_go(
    small_tools: Path, tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOCACHE", str(compiled))
    (small_tools / "hello" / "main.go").write_text("package main\n\nfunc main() { missing() }\n")
    with pytest.raises(BuildError, match=r"building hello v1\.2\.3 failed [^:]*:\n(.*\n)*.*undefined: missing"):
        gotools.ensure(["hello"], tools=small_tools, cache=tmp_path)


def test_an_unreachable_module_proxy_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOPROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("GOMODCACHE", str(tmp_path / "modules"))
    with pytest.raises(MissingPrerequisite, match=r"modules of etcd v3\.\S+ cannot be downloaded") as raised:
        gotools.ensure(["etcd"], tools=TOOLS, cache=tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"GOVERSION": "go1.22.3"}, r"is go1\.22\.3; install Go 1\.24 or newer"),
        (
            {"GOVERSION": "go1.24.1", "GOTOOLCHAIN": "local"},
            r"etcd v3\.\S+ needs Go 1\.\d+, .* is go1\.24\.1, .* set GOTOOLCHAIN=auto",
        ),
        (None, r"does not work \(broken\); install Go 1\.24 or newer"),
    ],
    ids=["too old", "too old for one module", "broken"],
)
def test_a_go_that_will_not_do_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, settings: dict[str, str] | None, said: str
) -> None:
    answer = f"echo '{json.dumps(settings)}'" if settings else "echo broken >&2; exit 2"
    (tmp_path / "go").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(MissingPrerequisite, match=said) as raised:
        gotools.ensure(["etcd"], tools=TOOLS, cache=tmp_path / "cache")
    assert "\n" not in str(raised.value)


def test_a_missing_go_is_told_before_anything_else_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(MissingPrerequisite, match="Go is not installed"),
        gotools.ensuring(["helm"], tools=TOOLS, cache=tmp_path),
    ):
        pytest.fail("the block is entered")


def test_the_command_needs_nothing_but_python(tmp_path: Path) -> None:
    environment = os.environ | {"PATH": str(tmp_path), "PYTHONPATH": str(TOOLS.parent / "local")}
    done = subprocess.run(
        [sys.executable, "-S", "-m", "kaito_local.machine.gotools", "cluster"],
        env=environment | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr.startswith("kaito: Go is not installed")) == (1, True), done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_running_and_the_next_call_builds(
    small_tools: Path, tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch, *, number: signal.Signals
) -> None:
    program = catalogue(TOOLS, tmp_path / "kaito")["etcd"]
    command = [sys.executable, "-m", "kaito_local.machine.gotools", "cluster"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(TOOLS.parent / "local")}
    environment.pop("KUBEBUILDER_ASSETS", None)
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as running:
        eventually(lambda: _builders(program.path))
        started = psutil.Process(running.pid).children(recursive=True)
        running.send_signal(number)
        assert running.wait(timeout=60) == 128 + number
    assert started
    assert psutil.wait_procs(started, timeout=PATIENCE)[1] == []
    monkeypatch.setenv("GOCACHE", str(compiled))
    assert gotools.ensure(["hello"], tools=small_tools, cache=tmp_path / "kaito")["hello"].exists()


def test_an_interrupted_command_ends_the_build_that_goes_on_beside_it(tmp_path: Path) -> None:
    program = catalogue(TOOLS, tmp_path)["kube-scheduler"]
    told = io.StringIO()
    futures = []

    def interrupted() -> None:
        progress = Progress(told, log_every=0.1)
        with gotools.ensuring(["kube-scheduler"], tools=TOOLS, cache=tmp_path, progress=progress) as building:
            futures.append(building)
            eventually(lambda: _builders(program.path))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "building kube-scheduler v1." in told.getvalue()
    assert isinstance(futures[0].exception(), BuildError)
    assert not program.path.exists()
    assert _builders(program.path) == []


def test_an_interrupted_command_does_not_wait_for_another_builder(tmp_path: Path) -> None:
    program = catalogue(TOOLS, tmp_path)["kube-scheduler"]
    program.path.parent.mkdir(parents=True)
    with (program.path.parent / ".kube-scheduler.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with gotools.ensuring(["kube-scheduler"], tools=TOOLS, cache=tmp_path) as building:
            time.sleep(0.5)
            assert not building.done()
        with pytest.raises(BuildError, match="somebody else builds kube-scheduler"):
            building.result()


def _builders(program: Path) -> list[psutil.Process]:
    """The `go build` processes that write this program."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(program.parent / f".{program.name}.partial") in (process.info["cmdline"] or []):
            found.append(process)
    return found
