"""One local cluster as a process: its network, mount and pid namespaces, its link to this machine, its end.

    network = reserve_network(directory)        # before certificates: the addresses never change afterwards
    cluster = Cluster.start(directory, network=network, programs=[...])   # etcd, kube-apiserver, ..., registry
    cluster = Cluster.attach(directory)         # None if it does not run
    Cluster.stop(directory)                                  # idempotent; nothing is left but the state folder

Everything of the cluster (control plane, registry, every node, every Pod, bridge, links) lives in namespaces owned
by one process, `python -m kaito_local.nodes.cluster_init`: `kill -9` of that one pid ends it all. On this machine there
are only one link with an address, two routes (Pods, cluster IPs), cgroups under `<controller>/kaito-<slot>` and the
state folder.

The programs listen on ``network.gateway`` (or on 127.0.0.1, which is the cluster's own) and are supervised: one that
ends is started again. `kaito_local.nodes.node` adds nodes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from kaito_local.errors import MissingPrerequisite, StartError
from kaito_local.machine.cgroups import detect_cgroups
from kaito_local.machine.locks import file_lock
from kaito_local.machine.namespaces import HIDDEN_IN_NODES, eventually, host_pids, ip, launch, remove_link
from kaito_local.machine.network import Network, choose_network, conflict, networks_in_use
from kaito_local.machine.processes import Identity, last_lines
from kaito_local.machine.supervisor import Program

_NETWORK_FILE = "network.json"
_PROCESS_FILE = "cluster-process.json"
_STATUS_FILE = "cluster-programs.json"
_END_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ProgramStatus:
    """A supervised program: ``pid`` in this machine's numbering (0 while it does not run), ``starts`` counts from 1."""

    name: str
    pid: int
    starts: int
    last_exit: str
    log: Path


def reserve_network(directory: Path) -> Network:
    """The addresses of the cluster in ``directory``: as recorded there, or free ones chosen and recorded.

    Clusters in sibling folders count as taken. Raises MissingPrerequisite when nothing is free, or when the recorded
    addresses are in use by something else.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    record = directory / _NETWORK_FILE
    with file_lock(directory.parent / ".networks.lock"):
        if record.exists():
            network = recorded_network(directory)
            if Cluster.attach(directory) is None:
                _clean(directory, network)
                _require_free(network)
            return network
        reserved = [recorded_network(path.parent).slot for path in directory.parent.glob(f"*/{_NETWORK_FILE}")]
        network = choose_network(reserved_slots=reserved, in_use=networks_in_use())
        write_json(record, {"slot": network.slot})
        return network


def recorded_network(directory: Path) -> Network:
    """The addresses that `reserve_network` recorded; raises FileNotFoundError."""
    return Network(int(json.loads((directory / _NETWORK_FILE).read_text())["slot"]))


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running cluster. ``pid`` (of this machine's numbering) owns everything in it."""

    directory: Path
    network: Network
    process: Identity

    @property
    def pid(self) -> int:
        """The one process whose end ends the cluster."""
        return self.process.pid

    @classmethod
    def start(cls, directory: Path, *, network: Network, programs: Sequence[Program]) -> Cluster:
        """Makes namespaces and links and starts ``programs``, without waiting for them; a no-op if it runs.

        One that was killed and is still ending is waited for. Raises MissingPrerequisite (not root, a kernel feature,
        addresses taken), StartError. Interrupted or failed, it leaves nothing.
        """
        directory = directory.resolve()
        require_machine(directory)
        (directory / "log").mkdir(parents=True, exist_ok=True)
        with file_lock(directory / ".cluster.lock"):
            running = cls.attach(directory)
            if running is not None:
                return running
            _clean(directory, network)
            _require_free(network)
            status_file = directory / _STATUS_FILE
            status_file.unlink(missing_ok=True)
            plan = {
                "slot": network.slot,
                "programs": [program.write() for program in programs],
                "status_file": str(status_file),
            }
            write_json(directory / "cluster-init.json", plan)
            log = directory / "log" / "cluster.log"
            cgroups = detect_cgroups(network.cgroup)
            launched = None
            try:
                launched = launch(
                    "kaito_local.nodes.cluster_init",
                    [str(directory / "cluster-init.json")],
                    log=log,
                    prefix=cgroups.launch_prefix,
                )
                process = launched.process
                write_json(directory / _PROCESS_FILE, asdict(process))
                _link_to_host(network, process.pid, owner=directory)
                launched.release()
                if (
                    not eventually(lambda: status_file.exists() or not process.alive(), seconds=60.0)
                    or not process.alive()
                ):
                    raise StartError(f"the cluster's process did not start; the end of {log}:\n{last_lines(log)}")
            except BaseException:
                if launched is not None:
                    launched.abandon()
                _clean(directory, network)
                raise
            return cls(directory=directory, network=network, process=process)

    @classmethod
    def attach(cls, directory: Path) -> Cluster | None:
        """The running cluster of this state folder, None if it does not run or is ending."""
        directory = directory.resolve()
        try:
            process = _recorded_process(directory)
            network = recorded_network(directory)
        except FileNotFoundError:
            return None
        if not process.running():
            return None
        return cls(directory=directory, network=network, process=process)

    @classmethod
    def stop(cls, directory: Path) -> None:
        """Kills the cluster; link, routes and cgroups are gone when it returns, the state folder stays. Idempotent."""
        directory = directory.resolve()
        if not (directory / _NETWORK_FILE).exists():
            return
        with file_lock(directory / ".cluster.lock"):
            running = cls.attach(directory)
            if running is not None:
                running.process.send_signal(signal.SIGKILL)
            _clean(directory, recorded_network(directory))

    def programs(self) -> list[ProgramStatus]:
        """What runs in the cluster's own process (nodes have their own: `Node.programs`)."""
        return read_program_status(self.directory / _STATUS_FILE, owner=self.pid)


def read_program_status(status_file: Path, *, owner: int) -> list[ProgramStatus]:
    """What a supervisor says of its programs, with pids in this machine's numbering; ``owner`` is the supervisor's."""
    try:
        entries = json.loads(status_file.read_text())
        pids = host_pids(owner)
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [
        ProgramStatus(
            name=entry["name"],
            pid=pids.get(entry["pid"], 0),
            starts=entry["starts"],
            last_exit=entry["last_exit"],
            log=Path(entry["log"]),
        )
        for entry in entries
    ]


def require_machine(directory: Path) -> None:
    """Raises MissingPrerequisite if nodes cannot run here or their state cannot lie in ``directory``."""
    if os.geteuid() != 0:
        raise MissingPrerequisite("nodes need root: run it with sudo")
    for command in ("unshare", "nsenter", "ip"):
        if shutil.which(command) is None:
            raise MissingPrerequisite(
                f"`{command}` is not installed; install the Debian packages util-linux and iproute2"
            )
    for path in (directory, Path(sys.prefix), Path(__file__)):
        for hidden in HIDDEN_IN_NODES:
            if path.resolve().is_relative_to(hidden):
                raise MissingPrerequisite(
                    f"{path} lies below {hidden}, which every node covers with a folder of its own; "
                    "keep the project, KAITO_HOME and XDG_CACHE_HOME elsewhere"
                )
    if not Path("/proc/sys/net/bridge").exists():
        subprocess.run(["modprobe", "br_netfilter"], capture_output=True, check=False)
        if not Path("/proc/sys/net/bridge").exists():
            raise MissingPrerequisite(
                "the kernel module br_netfilter is not loaded and cannot be; run: modprobe br_netfilter"
            )


def _recorded_process(directory: Path) -> Identity:
    """Raises FileNotFoundError."""
    return Identity(**json.loads((directory / _PROCESS_FILE).read_text()))


def _link_to_host(network: Network, pid: int, *, owner: Path) -> None:
    ip(
        [
            f"link add {network.host_link} type veth peer name host0 netns {pid}",
            f'link set {network.host_link} alias "{_alias(owner)}"',
            f"address add {network.host}/24 dev {network.host_link}",
            f"link set {network.host_link} up",
            f"route add {network.pod_cidr} via {network.gateway}",
            f"route add {network.service_cidr} via {network.gateway}",
        ]
    )


def _clean(directory: Path, network: Network) -> None:
    """Waits for the end of a killed cluster and removes what it left; not what belongs to one that took its place.

    Raises StartError if it does not end.
    """
    with suppress(FileNotFoundError):
        process = _recorded_process(directory)
        if not process.wait(_END_SECONDS):
            raise StartError(f"the cluster's process {process.pid} does not end although it was killed")
    alias = Path(f"/sys/class/net/{network.host_link}/ifalias")
    if not alias.exists() or alias.read_text().strip() == _alias(directory):
        remove_link(network.host_link)
        detect_cgroups(network.cgroup).remove()
    (directory / _PROCESS_FILE).unlink(missing_ok=True)
    (directory / _STATUS_FILE).unlink(missing_ok=True)


def _alias(directory: Path) -> str:
    """Says whose link it is; the kernel keeps 255 bytes."""
    return str(directory)[-200:]


def _require_free(network: Network) -> None:
    problem: list[str | None] = []

    def free() -> bool:
        problem[:] = [conflict(network, networks_in_use())]
        return problem == [None]

    # The link of another cluster that was killed a moment ago goes by itself.
    if not eventually(free, seconds=3.0, every=0.1):
        raise MissingPrerequisite(f"{problem[0]}; stop what uses it, or choose another cluster name")


def write_json(path: Path, data: object) -> None:
    """In one step: readers see the old file or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(data, indent=1))
    partial.rename(path)
