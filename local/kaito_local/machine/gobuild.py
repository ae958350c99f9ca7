"""One ``go build``: with Go's own words when it fails, its progress in packages, and a cache that does not stay.

Compiled packages go to a build cache below the user's cache folder, which is removed once all programs of a call are
built: only the binaries need keeping, and all packages of all programs are 4 GB. What it costs: a later call with other
programs (`make test` needs some that a cluster does not) compiles Go's own library once more, 40 s of processor time.
The rest would have been compiled anyway, because those programs are made of other releases of Kubernetes' client. A
failed or interrupted call leaves the cache to the next one. Whoever sets ``GOCACHE`` keeps it there. Modules stay in
``GOMODCACHE``, which all Go work of a user shares and which may be filled by hand where there is no network.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kaito_local.errors import BuildError, MissingPrerequisite
from kaito_local.machine.gomodules import Program
from kaito_local.machine.memory import available_gib
from kaito_local.machine.progress import Progress, Step

PART = "Go programs"
_MINIMUM_GO = (1, 24)
_PLENTY_GIB = 8.0
_SHOWN_LINES = 15
_POLL = 0.2
_ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
# How Go says that it got no answer from the module proxy, or that it may not ask.
_UNREACHABLE = re.compile(
    r"dial tcp|no such host|connection refused|i/o timeout|TLS handshake|x509: |proxyconnect|context deadline exceeded"
    r"|network is unreachable|unexpected EOF|module lookup disabled|toolchain not available"
    r"|: [45]\d\d [A-Z]|reading \S*https?://"
)


@dataclass(frozen=True, slots=True)
class Go:
    """The Go of this machine: where, its version, and what ``go env`` says of it."""

    command: str
    version: tuple[int, int]
    settings: Mapping[str, str]

    @classmethod
    def find(cls) -> Go:
        """The one on ``PATH``. Raises MissingPrerequisite if there is none or it is too old."""
        command = shutil.which("go")
        wanted = f"Go {_MINIMUM_GO[0]}.{_MINIMUM_GO[1]} or newer"
        if command is None:
            raise MissingPrerequisite(f"Go is not installed (no `go` on PATH); install {wanted}, then try again")
        # In a folder without a go.mod: Go would fetch the version that one asks for.
        asked = [command, "env", "-json", "GOVERSION", "GOTOOLCHAIN", "GOCACHE"]
        said = subprocess.run(asked, cwd="/", capture_output=True, text=True, check=False)
        try:
            settings = {str(key): str(value) for key, value in json.loads(said.stdout).items()}
        except (ValueError, AttributeError):
            reason = (said.stderr.strip() or f"exit {said.returncode}").splitlines()[-1]
            raise MissingPrerequisite(f"{command} does not work ({reason}); install {wanted}, then try again") from None
        match = re.search(r"go(\d+)\.(\d+)", settings.get("GOVERSION", ""))
        version = (int(match[1]), int(match[2])) if match else _MINIMUM_GO
        if version < _MINIMUM_GO:
            raise MissingPrerequisite(f"{command} is {settings['GOVERSION']}; install {wanted}, then try again")
        return cls(command, version, settings)

    def check(self, program: Program) -> None:
        """Raises MissingPrerequisite if the program's module asks for a newer Go and this one may not fetch it."""
        needed = program.module.go
        if self.version < needed and self.settings.get("GOTOOLCHAIN") == "local":
            raise MissingPrerequisite(
                f"{program.name} {program.version} needs Go {needed[0]}.{needed[1]}, and {self.command} is "
                f"{self.settings['GOVERSION']}, which GOTOOLCHAIN=local keeps from fetching a newer one; install "
                f"Go {needed[0]}.{needed[1]} or newer, or set GOTOOLCHAIN=auto, then try again"
            )


@contextmanager
def build_cache(go: Go, cache: Path) -> Iterator[Path]:
    """The folder of compiled packages while the block runs; removed after it, unless others still build in it."""
    given = os.environ.get("GOCACHE") or _written_setting(go, "GOCACHE")
    if given:
        yield Path(given)
        return
    folder = cache / "go-build"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".go-build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield folder
        if taken(lock):
            shutil.rmtree(folder, ignore_errors=True)


def taken(lock: IO[str]) -> bool:
    """Whether this process has the lock for itself; asks only once."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def build(program: Program, *, go: Go, go_cache: Path, progress: Progress, stop: threading.Event) -> None:
    """Builds the program; it lies under its name only when it is whole.

    Raises BuildError with Go's last words, or if ``stop`` ends it, MissingPrerequisite if Go is too old or gets no
    module.
    """
    go.check(program)
    partial = program.path.parent / f".{program.name}.partial"
    stamped = "".join(f" -X {variable}={value}" for variable, value in program.stamps.items())
    # Without debug information from the compiler, which the linker would only drop: a tenth of its work. Without the
    # state of this repository, which would be asked for programs of our own. Not with -trimpath: it names packages by
    # the version that a module requires, so that those of a replaced module would not be shared.
    flags = ["-buildvcs=false", f"-ldflags=-s -w{stamped}", "-gcflags=all=-dwarf=false"]
    run = _Runner(program, go, go_cache, stop)
    name = f"{program.name} {program.version}"
    with progress.step(f"building {name}", part=PART, name=program.name) as step:
        compiled: list[str] = []

        def downloading(line: str) -> None:
            if line.startswith("go: downloading "):
                step.at(0, detail="downloading modules")

        stale = run("list", "-deps", *flags, "-f", "{{if .Stale}}x{{end}}", program.package, each_line=downloading)
        total = stale.count("x")

        def counting(line: str) -> None:
            if _is_package(line):
                compiled.append(line)
                _show(step, len(compiled), total)

        _show(step, 0, total)
        run("build", "-v", *flags, "-o", str(partial), program.package, each_line=counting)
        partial.rename(program.path)


def _show(step: Step, done: int, total: int) -> None:
    step.at(min(done, total), of=total, unit="packages", detail="linking" if done >= total else "")


def _is_package(line: str) -> bool:
    """Whether ``go build -v`` names a package that it compiled: a path and nothing else."""
    return bool(line) and not line.startswith(("#", "go: ", "\t")) and " " not in line and ":" not in line


def _written_setting(go: Go, name: str) -> str:
    """What the user wrote with ``go env -w``."""
    said = subprocess.run([go.command, "env", "-changed", name], cwd="/", capture_output=True, text=True, check=False)
    return go.settings.get(name, "") if said.stdout.strip() else ""


@dataclass(frozen=True, slots=True)
class _Runner:
    """Runs Go commands in the program's module, until they end or ``stop`` ends them."""

    program: Program
    go: Go
    go_cache: Path
    stop: threading.Event

    def __call__(self, *arguments: str, each_line: Callable[[str], None]) -> str:
        """What the command wrote to stdout; ``each_line`` sees its stderr."""
        written: list[str] = []
        said: list[str] = []

        def hear(line: str) -> None:
            said.append(line)
            each_line(line)

        with subprocess.Popen(
            [self.go.command, *arguments],
            cwd=self.program.module.folder,
            env=_collecting_rarely() | os.environ | _ENVIRONMENT | {"GOCACHE": str(self.go_cache)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        ) as process:
            readers = [_reader(process.stdout, written.append), _reader(process.stderr, hear)]
            try:
                while not _ended(process):
                    if self.stop.is_set():
                        process.terminate()
            except BaseException:
                process.terminate()
                raise
            finally:
                for reader in readers:
                    reader.join()
        if process.returncode != 0:
            raise self._failure(arguments[0], process.returncode, said)
        return "\n".join(written)

    def _failure(self, command: str, status: int, said: Sequence[str]) -> BuildError | MissingPrerequisite:
        name = f"{self.program.name} {self.program.version}"
        words = [line for line in said if line.strip() and not line.startswith("go: downloading ")]
        # All modules are there when `go list` has seen every package.
        unreachable = [line for line in words if _UNREACHABLE.search(line)] if command == "list" else []
        if unreachable and not self.stop.is_set():
            reason = unreachable[0].strip().removeprefix("go: ")
            return MissingPrerequisite(
                f"the Go modules of {name} cannot be downloaded ({reason}); see to it that this machine reaches its "
                "module proxy (`go env GOPROXY` names it), then try again"
            )
        last = "\n".join([line for line in words if not _is_package(line)][-_SHOWN_LINES:])
        return BuildError(f"building {name} failed (go {command}, exit {status}):\n{last}")


def _reader(stream: IO[str] | None, sink: Callable[[str], None]) -> threading.Thread:
    """Hands each line of ``stream`` to ``sink``, in a thread of its own."""

    def read() -> None:
        for line in stream or ():
            sink(line.rstrip("\n"))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def _ended(process: subprocess.Popen[str]) -> bool:
    try:
        process.wait(timeout=_POLL)
    except subprocess.TimeoutExpired:
        return False
    return True


def _collecting_rarely() -> dict[str, str]:
    """Where there is memory enough, the compiler collects garbage rarely: a tenth less work for twice the memory."""
    return {"GOGC": "400"} if available_gib() > _PLENTY_GIB else {}
