"""A Kubernetes control plane out of its real programs: etcd, kube-apiserver, kube-controller-manager, kube-scheduler.

Two users. Tests of controllers start it on the loopback address with free ports, several side by side, without root;
nothing of it outlives the process that started it. The local cluster starts the same class inside its own network
namespace, on the cluster's own address with the usual ports, and adds nodes. Users are told apart by client
certificates of the control plane's own authority; there is no token file.
"""

from __future__ import annotations

import http.client
import ipaddress
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from kaito_local.cluster.kubectl import run_kubectl
from kaito_local.errors import StartError
from kaito_local.machine.pki import Authority, KeyPair, service_account_key, write_kubeconfig
from kaito_local.machine.ports import free_ports
from kaito_local.machine.processes import Child, last_lines
from kaito_local.machine.supervisor import Program

ADMINISTRATOR = "kaito-admin"
"""The user of the kubeconfigs that a control plane writes for itself."""
_READY_WITHIN = 60.0
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Ports:
    """The TCP ports of a control plane; etcd's are on the loopback address."""

    api: int = 6443
    etcd: int = 2379
    etcd_peer: int = 2380


@dataclass(frozen=True, slots=True)
class Settings:
    """What a control plane is started with.

    ``address``: where the API server listens. ``ports``: None picks free ones. ``service_network``: CIDR of ClusterIPs.
    ``node_grace``: seconds without a heartbeat after which a node counts as lost. ``eviction_after``: seconds that a
    Pod without tolerations of its own stays on a lost node. ``hosts``: further names of the API server's certificate.
    ``api_server_arguments``: further ones, such as those of an audit log.
    """

    address: str = "127.0.0.1"
    ports: Ports | None = None
    service_network: str = "10.96.0.0/16"
    node_grace: float = 50.0
    eviction_after: float = 300.0
    controller_manager: bool = True
    scheduler: bool = True
    hosts: tuple[str, ...] = ()
    api_server_arguments: tuple[str, ...] = ()


class ControlPlane:
    """A running control plane; ``start`` makes one, ``close`` (or leaving the ``with`` block) ends all of it.

    ``kubeconfig`` is the administrator's for processes beside it, which names the files of its certificates; one that
    carries them inside lies as ``kubeconfig`` in the directory.

    The directory keeps keys, data and logs: a control plane started in it again continues with the same objects.
    """

    def __init__(self, directory: Path, *, programs: Mapping[str, Path], settings: Settings, ports: Ports) -> None:
        self.directory = directory
        self.settings = settings
        self.ports = ports
        self.url = f"https://{settings.address}:{ports.api}"
        self.authority = Authority.open(directory / "pki")
        self.kubeconfig = self.authority.folder / "admin.kubeconfig"
        self._programs = dict(programs)
        self._admin = self.authority.client("admin", user=ADMINISTRATOR, groups=["system:masters"])
        for path, embed in ((self.kubeconfig, False), (directory / "kubeconfig", True)):
            write_kubeconfig(path, server=self.url, authority=self.authority, client=self._admin, embed=embed)
        self._etcd = self._etcd_child()
        self._api_server = self._api_server_child()
        self._controllers = self._controller_children()

    @classmethod
    def start(
        cls,
        directory: Path,
        *,
        programs: Mapping[str, Path],
        controller_manager: bool = True,
        scheduler: bool = True,
        settings: Settings | None = None,
    ) -> ControlPlane:
        """A control plane that is ready: its API server answers /readyz, controller manager and scheduler run.

        Raises StartError with the end of a log when it is not ready within a minute. ``settings`` goes before the two
        flags.
        """
        settings = settings or Settings(controller_manager=controller_manager, scheduler=scheduler)
        for attempt in range(1, _ATTEMPTS + 1):
            api, etcd, peer = (0, 0, 0) if settings.ports else free_ports(3)
            ports = settings.ports or Ports(api=api, etcd=etcd, etcd_peer=peer)
            plane = cls(directory, programs=programs, settings=settings, ports=ports)
            try:
                plane.resume()
            except BaseException as error:
                plane.close()
                # A port that was free may be somebody's by now; other failures would only repeat themselves.
                if isinstance(error, StartError) and "address already in use" in str(error) and attempt < _ATTEMPTS:
                    continue
                raise
            return plane
        raise AssertionError("unreachable")

    def resume(self) -> None:
        """Starts every part that does not run, and waits until the API server is ready."""
        self._etcd.start()
        self._wait(self._etcd, self._etcd_healthy, "etcd")
        self.start_api_server()
        for child in self._controllers:
            child.start()

    @property
    def children(self) -> list[Child]:
        """The parts, in the order in which they start."""
        return [self._etcd, self._api_server, *self._controllers]

    def supervised(self) -> list[Program]:
        """The parts as programs for a supervisor, instead of children of this process; nothing is started here."""
        after = {self._etcd.name: "", self._api_server.name: f"127.0.0.1:{self.ports.etcd}"}
        api = f"{self.settings.address}:{self.ports.api}"
        return [
            Program(name=child.name, command=child.command, log=str(child.log), after=after.get(child.name, api))
            for child in self.children
        ]

    def wait_ready(self, *, seconds: float = _READY_WITHIN) -> None:
        """Waits for an API server that somebody else runs; StartError with the end of its log when it takes longer."""
        deadline = time.monotonic() + seconds
        while not self.ready():
            if time.monotonic() > deadline:
                log = self._api_server.log
                raise StartError(f"the API server is not ready after {seconds:.0f} s; {log} ends:\n{last_lines(log)}")
            time.sleep(0.05)

    def stop_api_server(self, *, grace: float = 5.0) -> None:
        """Ends the API server only (``grace`` 0: by SIGKILL), as in an outage; the objects stay in etcd."""
        self._api_server.stop(grace=grace)

    def start_api_server(self) -> None:
        """Starts the API server at its old address and waits until it is ready."""
        self._api_server.start()
        self._wait(self._api_server, self.ready, "the API server")

    def ready(self) -> bool:
        """Whether the API server answers /readyz with ok."""
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        context.load_cert_chain(self._admin.certificate, self._admin.key)
        connection = http.client.HTTPSConnection(self.settings.address, self.ports.api, timeout=5, context=context)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def client_kubeconfig(self, path: Path, *, user: str, groups: tuple[str, ...] = ()) -> Path:
        """A kubeconfig at ``path`` for another user, to act with no more than that user's rights."""
        client = self.authority.client(path.name, user=user, groups=groups, folder=path.parent)
        return write_kubeconfig(path, server=self.url, authority=self.authority, client=client, embed=False)

    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = 60.0) -> str:
        """What kubectl prints; raises CommandError with what it says on stderr."""
        environment = {"KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.directory / "kubectl-cache")}
        program = self._programs["kubectl"]
        return run_kubectl(program, *arguments, environment=environment, input=input, timeout=timeout)

    def close(self) -> None:
        """Ends every part; the API server first, so that nothing writes into an etcd that is going away."""
        for child in reversed(self.children):
            # A killed etcd loses nothing: what it acknowledged is in the page cache, which only a power cut empties.
            child.stop(grace=0)

    def __enter__(self) -> ControlPlane:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self, child: Child, check: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _READY_WITHIN
        while not check():
            child.check()
            if time.monotonic() > deadline:
                raise StartError(f"{what} is not ready after {_READY_WITHIN:.0f} s; see {child.log}")
            time.sleep(0.05)

    def _etcd_healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.ports.etcd, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _etcd_child(self) -> Child:
        client, peer = f"http://127.0.0.1:{self.ports.etcd}", f"http://127.0.0.1:{self.ports.etcd_peer}"
        command: list[str | Path] = [
            self._programs["etcd"],
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]
        return Child("etcd", command, log=self._log("etcd"))

    def _api_server_child(self) -> Child:
        settings, pki = self.settings, self.authority.folder
        first_service = str(next(ipaddress.ip_network(settings.service_network).hosts()))
        serving = self.authority.server(
            "kube-apiserver",
            hosts=[
                settings.address,
                "127.0.0.1",
                first_service,
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
                *settings.hosts,
            ],
        )
        kubelet = self.authority.client("apiserver-kubelet", user="kube-apiserver-kubelet", groups=["system:masters"])
        front = self.authority.client("front-proxy", user="front-proxy")
        accounts = service_account_key(pki / "service-accounts.key")
        loopback = ipaddress.ip_address(settings.address).is_loopback
        command: list[str | Path] = [
            self._programs["kube-apiserver"],
            f"--etcd-servers=http://127.0.0.1:{self.ports.etcd}",
            f"--bind-address={settings.address}",
            f"--advertise-address={settings.address}",
            f"--secure-port={self.ports.api}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self.authority.certificate}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={accounts}",
            f"--service-account-signing-key-file={accounts}",
            f"--service-cluster-ip-range={settings.service_network}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-client-certificate={kubelet.certificate}",
            f"--kubelet-client-key={kubelet.key}",
            f"--default-not-ready-toleration-seconds={settings.eviction_after:.0f}",
            f"--default-unreachable-toleration-seconds={settings.eviction_after:.0f}",
            "--enable-aggregator-routing",
            f"--requestheader-client-ca-file={self.authority.certificate}",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={front.certificate}",
            f"--proxy-client-key-file={front.key}",
            # An Endpoints object may not name a loopback address, and without nodes nobody would use it.
            *(["--endpoint-reconciler-type=none"] if loopback else []),
            *settings.api_server_arguments,
        ]
        return Child("kube-apiserver", command, log=self._log("kube-apiserver"))

    def _controller_children(self) -> list[Child]:
        children = []
        if self.settings.controller_manager:
            config = self._component_kubeconfig("kube-controller-manager")
            command: list[str | Path] = [
                self._programs["kube-controller-manager"],
                f"--kubeconfig={config}",
                f"--service-account-private-key-file={self.authority.folder / 'service-accounts.key'}",
                f"--root-ca-file={self.authority.certificate}",
                "--secure-port=0",
                "--leader-elect=false",
                "--use-service-account-credentials",
                "--allocate-node-cidrs=false",
                "--node-monitor-period=1s",
                f"--node-monitor-grace-period={self.settings.node_grace:g}s",
                "--horizontal-pod-autoscaler-sync-period=5s",
                "--kube-api-qps=100",
                "--kube-api-burst=200",
            ]
            children.append(Child("kube-controller-manager", command, log=self._log("kube-controller-manager")))
        if self.settings.scheduler:
            config = self._component_kubeconfig("kube-scheduler")
            command = [
                self._programs["kube-scheduler"],
                f"--kubeconfig={config}",
                "--secure-port=0",
                "--leader-elect=false",
            ]
            children.append(Child("kube-scheduler", command, log=self._log("kube-scheduler")))
        return children

    def _component_kubeconfig(self, component: str) -> Path:
        client: KeyPair = self.authority.client(component, user=f"system:{component}")
        path = self.authority.folder / f"{component}.kubeconfig"
        return write_kubeconfig(path, server=self.url, authority=self.authority, client=client, embed=False)

    def _log(self, name: str) -> Path:
        return self.directory / "log" / f"{name}.log"
