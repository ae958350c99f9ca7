"""Configuration files of a node's containerd: its own, the network of its Pods, and where it looks for images.

containerd's socket and state lie in the node's own /run, so these paths are the same in every node; only the root
folder (images and writable layers) has a path of its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from kaito_local.errors import MissingPrerequisite
from kaito_local.images.mirrors import PUBLIC_REGISTRIES

SOCKET = Path("/run/containerd/containerd.sock")
_PLUGIN_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))


def config(*, root: Path, network_config: Path, hosts: Path, sandbox_image: str, plugin_folder: Path) -> str:
    """``config.toml`` (version 2, which containerd 1.6 and 2.x read).

    Without CAP_SYS_RESOURCE nobody may lower an OOM score, hence ``restrict_oom_score_adj``.
    """
    disabled = [f"io.containerd.snapshotter.v1.{name}" for name in ("devmapper", "zfs", "btrfs", "aufs")]
    # This one would make folders in the machine's /opt.
    disabled.append("io.containerd.internal.v1.opt")
    return f"""\
version = 2
root = {_toml(root)}
state = "/run/containerd/state"
oom_score = 0
disabled_plugins = {json.dumps(disabled)}
[grpc]
  address = {_toml(SOCKET)}
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {_toml(sandbox_image)}
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {_toml(plugin_folder)}
    conf_dir = {_toml(network_config)}
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = {_toml(hosts)}
"""


def pod_network(pod_cidr: str) -> str:
    """The CNI configuration list of one node: a bridge with ``pod_cidr``, and host ports."""
    ipam = {"type": "host-local", "subnet": pod_cidr, "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {
        "type": "bridge",
        "bridge": "pods0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": ipam,
    }
    host_ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, host_ports]}, indent=1)


def write_hosts(folder: Path, *, mirror: str, mirrored: Iterable[str] = (), plain_http: Iterable[str] = ()) -> None:
    """One ``<registry>/hosts.toml`` each (https://github.com/containerd/containerd/blob/main/docs/hosts.md).

    A mirrored registry is a folder of the registry ``mirror``: ``override_path`` makes repository R of docker.io
    ``<mirror>/v2/docker.io/R``, and ``server`` says the same, so that nothing is ever asked of the internet.
    """
    for registry in {*PUBLIC_REGISTRIES, *mirrored}:
        _write_hosts(folder / registry, server=f"{mirror}/v2/{registry}", override_path=True)
    for host in {mirror.removeprefix("http://").removeprefix("https://"), *plain_http}:
        _write_hosts(folder / host, server=f"http://{host}", override_path=False)


def program() -> str:
    """The containerd of this machine. Raises MissingPrerequisite."""
    for command in ("containerd", "runc"):
        if shutil.which(command) is None:
            raise MissingPrerequisite(f"`{command}` is not installed; install the Debian packages containerd and runc")
    return str(shutil.which("containerd"))


def plugin_folder() -> Path:
    """Where this machine has the CNI plugins. Raises MissingPrerequisite."""
    for folder in _PLUGIN_FOLDERS:
        if (folder / "bridge").exists():
            return folder
    raise MissingPrerequisite(
        "the CNI plugins are not installed; install the Debian package containernetworking-plugins"
    )


def _write_hosts(folder: Path, *, server: str, override_path: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f'server = "{server}"', f'[host."{server}"]', '  capabilities = ["pull", "resolve"]']
    if override_path:
        lines.append("  override_path = true")
    (folder / "hosts.toml").write_text("\n".join(lines) + "\n")


def _toml(path: Path | str) -> str:
    return json.dumps(str(path))
