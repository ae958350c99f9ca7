"""Processes that own Linux namespaces, mounts inside them, and `ip` commands across them.

Needs root, util-linux and iproute2. A process started by `launch` is pid 1 of its own pid namespace, so killing it
ends everything started below it, unmounts what was mounted there and removes its links. It waits for a line on its
standard input before it does anything: if whoever launched it dies or is interrupted in between, it sees the end of
its input and exits.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kaito_local.errors import StartError
from kaito_local.machine.processes import Identity, last_lines

_GO = "go"
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SHARED = 1, 32, 4096, 16384, 1 << 20

# Nodes mount folders of their own over these, so nothing that a node needs from this machine may lie below them.
HIDDEN_IN_NODES = (Path("/run"), Path("/var/lib"), Path("/var/log"))


@dataclass(frozen=True, slots=True)
class Launched:
    """A process of its own namespaces that waits to be released."""

    process: Identity
    _outer: subprocess.Popen[bytes]

    def release(self) -> None:
        """Lets it begin."""
        assert self._outer.stdin is not None
        with suppress(BrokenPipeError):
            self._outer.stdin.write(f"{_GO}\n".encode())
            self._outer.stdin.close()
        # The outer process ends with the inner one; without somebody waiting it would stay a zombie.
        threading.Thread(target=self._outer.wait, daemon=True).start()

    def wait(self, *, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Its exit status, once it has ended; ``meanwhile`` is called twice a second until then."""
        while True:
            try:
                return self._outer.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                meanwhile()

    def abandon(self) -> None:
        """Ends it, released or not."""
        if self._outer.stdin is not None:
            with suppress(BrokenPipeError):
                self._outer.stdin.close()
        self.process.kill()
        self._outer.wait()


def launch(
    module: str,
    arguments: Sequence[str],
    *,
    log: Path,
    inside: int | None = None,
    prefix: Sequence[str] = (),
    own_network: bool = True,
) -> Launched:
    """Starts ``python -m module arguments`` as pid 1 of new mount, pid, UTS and (``own_network``) network namespaces.

    With ``inside`` (a pid) they are nested: the new pid namespace ends with that process's. ``prefix`` is a command
    that runs the rest. Raises StartError with the last lines of ``log`` when it cannot start.
    """
    enter = ["nsenter", f"--target={inside}", "--pid", "--mount", "--net"] if inside is not None else []
    fresh = ["--mount", "--pid", "--uts", *(["--net"] if own_network else [])]
    unshare = ["unshare", *fresh, "--fork", "--kill-child", "--mount-proc", "--propagation", "private"]
    command = [*prefix, *enter, *unshare, sys.executable, "-m", module, *arguments]
    with log.open("ab") as output:
        outer = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            # No proxy of this machine answers for the cluster's own addresses.
            env={name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
        )
    depth = 2 if enter else 1
    found: list[int] = []

    def look() -> bool:
        found[:] = _descendants(outer.pid, depth)
        return bool(found) or outer.poll() is not None

    try:
        eventually(look, seconds=60.0)
        if not found:
            raise ProcessLookupError
        process = Identity.of(found[0])
        if process is None:
            raise ProcessLookupError
        return Launched(process=process, _outer=outer)
    except ProcessLookupError:
        outer.kill()
        outer.wait()
        raise StartError(
            f"cannot start {module} in namespaces of its own; the end of {log}:\n{last_lines(log)}"
        ) from None
    except BaseException:
        outer.kill()
        outer.wait()
        raise


def wait_for_release() -> None:
    """Called first by a launched module: returns once it is released, exits if its launcher is gone."""
    if sys.stdin.readline().strip() != _GO:
        sys.exit("the launcher is gone; nothing was started")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def ip(commands: Iterable[str], *, namespace_of: int | None = None) -> None:
    """Runs `ip` commands in one batch, in this network namespace or that of a process. Raises StartError."""
    enter = ["nsenter", f"--target={namespace_of}", "--net"] if namespace_of is not None else []
    batch = "".join(f"{command}\n" for command in commands)
    done = subprocess.run([*enter, "ip", "-batch", "-"], input=batch, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StartError(
            f"cannot set up the network: {done.stderr.strip()} (commands: {'; '.join(batch.splitlines())})"
        )


def remove_link(name: str, *, namespace_of: int | None = None) -> None:
    """Removes a network link, and with it its addresses and routes; nothing if there is none.

    The kernel removes it too when the namespace at its other end is gone, but that may take seconds.
    """
    enter = ["nsenter", f"--target={namespace_of}", "--net"] if namespace_of is not None else []

    def gone() -> bool:
        subprocess.run([*enter, "ip", "link", "delete", "dev", name], capture_output=True, check=False)
        return (
            subprocess.run([*enter, "ip", "link", "show", "dev", name], capture_output=True, check=False).returncode
            != 0
        )

    if not eventually(gone, seconds=60.0):
        raise StartError(f"the network link {name} cannot be removed; see: ip link show {name}")


def bind(source: Path, target: Path, *, read_only: bool = False) -> None:
    """Mounts ``source`` (file or folder) over ``target`` in this mount namespace. Raises OSError."""
    _mount(str(source), str(target), "", _MS_BIND)
    if read_only:
        _mount("none", str(target), "", _MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def mount_tmpfs(target: Path) -> None:
    """An empty folder in memory over ``target``."""
    _mount("tmpfs", str(target), "tmpfs", 0, "mode=755")


def share_mounts() -> None:
    """Makes every mount of this namespace a shared one, as kubelet needs for mount propagation into Pods."""
    _mount("none", "/", "", _MS_REC | _MS_SHARED)


def host_pids(owner: int) -> dict[int, int]:
    """Pids inside the pid namespace of process ``owner`` and what they are in this process's numbering."""
    namespace = os.readlink(f"/proc/{owner}/ns/pid")
    pids: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            if os.readlink(entry / "ns" / "pid") == namespace:
                status = (entry / "status").read_text()
                inner = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1]
                pids[int(inner)] = int(entry.name)
    return pids


def eventually(check: Callable[[], object], *, seconds: float, every: float = 0.02) -> bool:
    """Polls ``check`` until it is true; False when ``seconds`` have passed."""
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode() or None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount over {target}: {os.strerror(number)}")


def _parent(pid: int) -> int | None:
    """The parent of a process (proc_pid_stat(5), field 4)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(text[text.rindex(")") + 2 :].split()[1])


def _descendants(pid: int, depth: int) -> list[int]:
    """The processes ``depth`` generations below ``pid``."""
    generation = {pid}
    for _ in range(depth):
        children = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _parent(int(entry.name)) in generation:
                children.add(int(entry.name))
        generation = children
    return sorted(generation)
