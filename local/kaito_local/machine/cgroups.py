"""The cgroups of a cluster's nodes, for both layouts that Linux machines have.

Version 1: one tree per controller below /sys/fs/cgroup; a cluster has ``<controller>/<root>/<node>`` in each.
Version 2: one tree. Where systemd runs it owns that tree, so the cluster's process is started in a scope with
delegation and the nodes' cgroups lie below it; elsewhere ``<root>`` lies at the top. Processes may sit only in
leaves there, which is why the cluster's and the nodes' own processes go to ``<base>/control``.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kaito_local.errors import MissingPrerequisite, StartError
from kaito_local.machine.namespaces import eventually

_MOUNT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids")


class CgroupTree(Protocol):
    """Where the cgroups of one cluster are."""

    @property
    def launch_prefix(self) -> tuple[str, ...]:
        """The command that must run the cluster's process."""

    def kubelet_root(self, node: str) -> str:
        """kubelet's ``cgroupRoot`` for a node."""

    def create(self, node: str) -> None:
        """Makes a node's cgroups; raises MissingPrerequisite where this machine does not let us."""

    def enter(self) -> None:
        """Moves the calling process into a cgroup of the cluster's own."""

    def remove(self, node: str | None = None) -> None:
        """Removes a node's cgroups, or all of the cluster's, once their processes are gone; idempotent."""


@dataclass(frozen=True, slots=True)
class VersionOne:
    """One tree per controller."""

    root: str
    mount: Path = _MOUNT

    @property
    def launch_prefix(self) -> tuple[str, ...]:
        """Nothing is needed."""
        return ()

    def kubelet_root(self, node: str) -> str:
        """The same path in every controller's tree."""
        return f"/{self.root}/{node}"

    def create(self, node: str) -> None:
        """In every controller's tree."""
        for controller in self._controllers():
            self._make(controller, node)

    def enter(self) -> None:
        """Away from the session or service that launched it, so that it neither counts there nor ends with it."""
        for controller in self._controllers():
            (self._make(controller, "control") / "cgroup.procs").write_text("0")

    def _make(self, controller: Path, name: str) -> Path:
        """A cpuset starts empty and would let no process in, so it is given what its parent has."""
        path = controller
        for part in (self.root, name):
            path /= part
            path.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems"):
                if (path.parent / setting).exists():
                    (path / setting).write_text((path.parent / setting).read_text())
        return path

    def remove(self, node: str | None = None) -> None:
        """In every controller's tree."""
        for controller in self._controllers():
            _remove_tree(controller / self.root / node if node else controller / self.root)

    def _controllers(self) -> list[Path]:
        return [path for path in sorted(self.mount.iterdir()) if path.is_dir() and not path.is_symlink()]


@dataclass(frozen=True, slots=True)
class VersionTwo:
    """The unified tree; ``systemd`` says whether systemd runs it."""

    root: str
    systemd: bool
    mount: Path = _MOUNT

    @property
    def launch_prefix(self) -> tuple[str, ...]:
        """A scope that systemd leaves to us."""
        if not self.systemd:
            return ()
        return ("systemd-run", "--scope", "--quiet", "--collect", f"--unit={self.root}", "--property=Delegate=yes")

    @property
    def base(self) -> Path:
        """The topmost cgroup that is ours."""
        return self.mount / "system.slice" / f"{self.root}.scope" if self.systemd else self.mount / self.root

    def kubelet_root(self, node: str) -> str:
        """Relative to the mount, with a leading slash."""
        return f"/{(self.base / node).relative_to(self.mount)}"

    def create(self, node: str) -> None:
        """Switches the controllers on along the way down."""
        self.base.mkdir(exist_ok=True)
        if not self.systemd:
            self._enable_controllers(self.mount)
        self._enable_controllers(self.base)
        (self.base / node).mkdir(exist_ok=True)

    def enter(self) -> None:
        """Process 0 is the one that writes."""
        leaf = self.base / "control"
        leaf.mkdir(parents=True, exist_ok=True)
        (leaf / "cgroup.procs").write_text("0")

    def remove(self, node: str | None = None) -> None:
        """`cgroup.kill` first, a second safety net behind the pid namespaces."""
        path = self.base / node if node else self.base
        with suppress(OSError):
            (path / "cgroup.kill").write_text("1")
        _remove_tree(path)

    def _enable_controllers(self, path: Path) -> None:
        have = (path / "cgroup.controllers").read_text().split()
        wanted = " ".join(f"+{name}" for name in _CONTROLLERS if name in have)
        try:
            (path / "cgroup.subtree_control").write_text(wanted)
        except OSError as error:
            raise MissingPrerequisite(
                f"cannot switch on the cgroup controllers {wanted} in {path} ({error.strerror}); "
                "run on a machine where root may change the cgroup tree, not in an unprivileged container"
            ) from error


def detect_cgroups(root: str, *, mount: Path = _MOUNT, systemd: bool | None = None) -> CgroupTree:
    """The layout of this machine; ``root`` is the name of the cluster's cgroup."""
    if (mount / "cgroup.controllers").exists():
        return VersionTwo(
            root, systemd=Path("/run/systemd/system").is_dir() if systemd is None else systemd, mount=mount
        )
    if not (mount / "memory").is_dir() or not (mount / "cpu").is_dir():
        raise MissingPrerequisite(
            f"no cgroups are mounted below {mount}; nodes need the controllers cpu, cpuset, memory and pids"
        )
    return VersionOne(root, mount=mount)


def _remove_tree(path: Path) -> None:
    def gone() -> bool:
        if not path.is_dir():
            return True
        for folder in sorted((entry for entry in path.rglob("*") if entry.is_dir()), reverse=True):
            with suppress(OSError):
                folder.rmdir()
        with suppress(OSError):
            path.rmdir()
        return not path.is_dir()

    if not eventually(gone, seconds=60.0, every=0.05):
        raise StartError(f"the cgroup {path} does not go away; a process is left in it: see {path}/**/cgroup.procs")
