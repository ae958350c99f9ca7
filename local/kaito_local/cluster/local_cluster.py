"""A whole local cluster, put together: `up` brings every part that is missing, `stop` ends all of it.

Each step looks first and does nothing when its part is there, so a second `up` changes nothing, and one after a failure
goes on where the last one ended.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kaito_local.cluster import dns, preflight
from kaito_local.cluster.charts import Charts, local_values, user_values
from kaito_local.cluster.cloud import CloudEmulator, system_machine
from kaito_local.cluster.controlplane import ADMINISTRATOR, ControlPlane, Ports, Settings
from kaito_local.cluster.images import ClusterImages
from kaito_local.cluster.keeper import running_keeper, start_keeper, stop_keeper
from kaito_local.cluster.kubectl import kubectl_environment, link_programs, run_kubectl
from kaito_local.cluster.pod_security import admission_argument
from kaito_local.cluster.registry import USER, Registry
from kaito_local.cluster.state import State, register_cluster, registered_clusters
from kaito_local.errors import LocalError, StartError
from kaito_local.images import weights
from kaito_local.images.mirrors import PUBLIC_REGISTRIES, Reference, mirrors_for_charts
from kaito_local.machine import gotools
from kaito_local.machine.folders import ROOT, cache_folder
from kaito_local.machine.interruptions import interruptible, uninterrupted
from kaito_local.machine.locks import file_lock
from kaito_local.machine.network import SYSTEM_NODE_INDEX
from kaito_local.machine.ports import free_ports, is_free
from kaito_local.machine.progress import QUIET, Progress
from kaito_local.machine.supervisor import answers
from kaito_local.nodes.cluster import Cluster, recorded_network, require_machine, reserve_network
from kaito_local.nodes.golden import ensure_golden, prune_golden
from kaito_local.nodes.node import Node, NodeSource, NodeSpec

SYSTEM_NODE = "system"
# Shorter than on a real cloud: a dead node is noticed while its user watches.
_NODE_GRACE_SECONDS = 10.0
_EVICTION_SECONDS = 5.0
_GOLDEN_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `kaito up` is asked for; ``weights`` are folders by preset."""

    charts: bool = True
    control_plane_only: bool = False
    settings: tuple[str, ...] = ()
    values: tuple[Path, ...] = ()
    weights: tuple[str, ...] = ()


class LocalCluster:
    """The cluster whose state folder is ``directory``, running or not."""

    def __init__(self, directory: Path, *, progress: Progress = QUIET) -> None:
        self.directory = directory
        self.progress = progress
        self.cache = cache_folder()

    @property
    def name(self) -> str:
        """Its name."""
        return self.directory.name

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.directory / "kubeconfig"

    @property
    def registry(self) -> Registry:
        """Its registry; raises FileNotFoundError for a cluster that has no network."""
        return Registry(self.directory, address=recorded_network(self.directory).gateway)

    @property
    def cloud(self) -> CloudEmulator:
        """Its emulated cloud; raises FileNotFoundError for a cluster that has no network."""
        return CloudEmulator(self.directory, address=recorded_network(self.directory).host)

    def running(self) -> bool:
        """Whether anything of it runs."""
        return Cluster.attach(self.directory) is not None or running_keeper(self.directory) is not None

    def up(self, options: UpOptions) -> None:
        """Brings up what is missing. What this call started is stopped again when it fails or is interrupted."""
        with interruptible(), self._locked():
            before = State.load(self.directory)
            was_running = self.running()
            if before is not None and was_running and before.control_plane_only != options.control_plane_only:
                kind = "a control plane without nodes" if before.control_plane_only else "a whole cluster"
                raise LocalError(f"{self.name} runs as {kind}; stop it first: kaito down --name {self.name}")
            if not was_running:
                self._stop()  # what was killed a moment ago may still hold ports, addresses and files
            try:
                if options.control_plane_only:
                    self._up_control_plane(before or State())
                else:
                    self._up_everything(before or State(), options)
                for line in self.progress.summary():
                    self.progress(line)
            except BaseException as error:
                if not was_running:
                    with uninterrupted():
                        self._stop()
                    # After a failure the logs are wanted; after an interruption nothing is.
                    if before is None and isinstance(error, KeyboardInterrupt):
                        shutil.rmtree(self.directory, ignore_errors=True)
                raise

    def stop(self, *, purge: bool = False) -> None:
        """Ends everything; with ``purge`` the state folder goes too. Idempotent."""
        if not self.directory.exists():
            return
        with self._locked():
            self._stop()
            if purge:
                shutil.rmtree(self.directory)

    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = 120.0) -> str:
        """What kubectl prints; raises CommandError with what it says on stderr."""
        program, environment = self._programs_folder / "kubectl", kubectl_environment(self.directory)
        return run_kubectl(program, *arguments, environment=environment, input=input, timeout=timeout)

    def environment(self) -> dict[str, str]:
        """What `kaito env` prints, without PATH; raises FileNotFoundError if the cluster was never up."""
        variables = kubectl_environment(self.directory)
        state = State.load(self.directory)
        if state is not None and not state.control_plane_only:
            registry, network = self.registry, recorded_network(self.directory)
            variables |= {
                "KAITO_REGISTRY": registry.host,
                "KAITO_REGISTRY_USER": USER,
                "KAITO_REGISTRY_PASSWORD": registry.password(),
                "KAITO_HOST_IP": network.host,
                "KAITO_ARM_ENDPOINT": self.cloud.endpoint,
            }
        return variables

    @property
    def _programs_folder(self) -> Path:
        return self.directory / "bin"

    @property
    def _images(self) -> ClusterImages:
        return ClusterImages(self.cache, self.progress)

    def _up_control_plane(self, state: State) -> None:
        programs = gotools.ensure(gotools.CONTROL_PLANE, tools=ROOT / "tools", cache=self.cache, progress=self.progress)
        if running_keeper(self.directory) is not None:
            plane = self._loopback_plane(programs, state)
        else:
            if state.ports is None or not all(map(is_free, state.ports)):
                api, etcd, peer = free_ports(3)
                state = state.save(self.directory, ports=(api, etcd, peer))
            plane = self._loopback_plane(programs, state)
            self.progress("starting the control plane")
            state.save(self.directory, control_plane_only=True)
            start_keeper(self.directory, plane.supervised())
        plane.wait_ready()
        link_programs(self._programs_folder, programs)

    def _loopback_plane(self, programs: Mapping[str, Path], state: State) -> ControlPlane:
        assert state.ports is not None
        api, etcd, peer = state.ports
        ports = Ports(api=api, etcd=etcd, etcd_peer=peer)
        settings = Settings(ports=ports, api_server_arguments=self._admission())
        return ControlPlane(self.directory, programs=programs, settings=settings, ports=ports)

    def _admission(self) -> tuple[str, ...]:
        return (admission_argument(self.directory, administrator=ADMINISTRATOR),)

    def _up_everything(self, state: State, options: UpOptions) -> None:
        require_machine(self.directory)
        user_values(options.values, options.settings)  # what is wrong with them is said before anything is built
        presets = list(weights.model_images(ROOT / "presets"))
        asked = weights.parse_weights(options.weights, known=presets)
        own = {**state.weights, **{preset: str(folder) for preset, folder in asked.items()}}
        missing = self._images.missing_gib()
        free = preflight.require_disk(self.cache, gib=missing + preflight.DISK_GIB_STATE)
        if missing:
            self.progress(f"what is still to be made takes about {missing:.0f} GiB of disk; {free:.0f} GiB are free")
        preflight.require_disk(self.directory, gib=preflight.DISK_GIB_STATE)
        if Cluster.attach(self.directory) is None:
            preflight.require_memory()
        with gotools.ensuring(
            gotools.CLUSTER, tools=ROOT / "tools", cache=self.cache, progress=self.progress
        ) as building:
            preflight.require_packages(ROOT / "local" / "packages.sh", progress=self.progress)
            network = reserve_network(self.directory)
            register_cluster(self.directory, cache=self.cache)
            state = state.save(self.directory, control_plane_only=False, weights=own)
            published = self._images.publish(self.registry, own_weights=own, programs=building)
            programs = building.result()

        settings = Settings(
            address=network.gateway,
            service_network=network.service_cidr,
            node_grace=_NODE_GRACE_SECONDS,
            eviction_after=_EVICTION_SECONDS,
            api_server_arguments=self._admission(),
        )
        plane = ControlPlane(self.directory, programs=programs, settings=settings, ports=Ports())
        cluster = Cluster.attach(self.directory)
        if cluster is None:
            self.progress("starting control plane and registry")
            stop_keeper(self.directory)
            members = [*plane.supervised(), *self.registry.programs(programs["registry"])]
            cluster = Cluster.start(self.directory, network=network, programs=members)
        link_programs(self._programs_folder, programs)
        for file in (self.kubeconfig, self.registry.password_file):
            _hand_to_invoker(file)
        plane.wait_ready()

        source = self._node_source(programs, published)
        self._start_cloud(cluster, source)
        node = self._system_node(cluster, source)
        self.kubectl("apply", "-f", "-", input=dns.manifests(network))
        node.wait_ready(seconds=60)
        self.kubectl("rollout", "status", "deployment/coredns", "-n", "kube-system", "--timeout=120s", timeout=150)
        if options.charts:
            self._install_charts(state, options, programs)

    def _node_source(self, programs: Mapping[str, Path], published: Sequence[str]) -> NodeSource:
        registry, builder = self.registry, self._images.builder
        mirror = f"http://{registry.mirror}"
        further = tuple(sorted({Reference.parse(name).registry for name in published} - set(PUBLIC_REGISTRIES)))
        self._wait_for_registry()
        folder = self.cache / "golden"
        with file_lock(self.cache / ".golden.lock"):
            golden = ensure_golden(
                folder,
                published,
                mirror=mirror,
                mirrored=further,
                layout=builder.layout,
                twins=builder.storage,
                progress=self.progress,
            )
            beside = registered_clusters(cache=self.cache)
            used = [node.golden for home in beside for node in Node.all(home) if node.golden is not None]
            os.utime(golden)
            # A cluster that is about to start has no node yet that says which root it uses.
            recent = [root for root in folder.iterdir() if time.time() - root.stat().st_mtime < _GOLDEN_SECONDS]
            prune_golden(folder, keep=[*recent, *used])
        return NodeSource(
            programs=programs,
            mirror=mirror,
            mirrored=further,
            plain_http=(registry.mirror, registry.host),
            golden=golden,
        )

    def _wait_for_registry(self) -> None:
        deadline = time.monotonic() + 30
        while not answers(self.registry.mirror):
            if time.monotonic() > deadline:
                raise StartError(f"the registry is not ready after 30 s; see {self.directory}/log/registry-mirror.log")
            time.sleep(0.05)

    def _system_node(self, cluster: Cluster, source: NodeSource) -> Node:
        existing = Node.load(self.directory, SYSTEM_NODE)
        if existing is not None and existing.golden != source.golden:
            if existing.pid is not None:
                self.progress(
                    "images have changed since the nodes started; kaito down and kaito up will run the new ones"
                )
            else:
                # Its own copy of the images would shadow the new ones, whose names are the same.
                existing.remove()
        return Node.add(cluster, _system_node(), source=source, index=SYSTEM_NODE_INDEX)

    def _start_cloud(self, cluster: Cluster, source: NodeSource) -> None:
        cloud = self.cloud
        if running_keeper(self.directory) is None:
            stop_keeper(self.directory)
            cloud.require_port()
            self.progress("starting the cloud emulator")
            start_keeper(self.directory, [cloud.program(source)], until=cluster.process)
        cloud.wait_ready()

    def _install_charts(self, state: State, options: UpOptions, programs: Mapping[str, Path]) -> None:
        network, registry = recorded_network(self.directory), self.registry
        charts = Charts(
            folder=ROOT / "charts",
            environment=kubectl_environment(self.directory),
            helm=programs["helm"],
            kubectl=programs["kubectl"],
            values=local_values(
                cloud=self.cloud.settings(),
                mirrors=mirrors_for_charts(registry.mirror),
                plain_http=[registry.mirror, registry.host],
                network=network.node_cidr,
            ),
            files=options.values,
            settings=options.settings,
        )
        digest = charts.digest()
        asked = bool(options.values or options.settings)
        if state.charts and (state.charts == digest or not asked) and charts.installed():
            return
        with self.progress.step("installing the charts", part="charts", name="kaito, gpu-provisioner") as step:
            charts.install(work=self.directory / "values", step=step)
        with self.progress.step("waiting for the controllers"):
            charts.wait_ready()
        state.save(self.directory, charts=digest)

    def _stop(self) -> None:
        stop_keeper(self.directory)
        Cluster.stop(self.directory)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if not self.directory.parent.exists():
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            _hand_to_invoker(self.directory.parent)
        with file_lock(self.directory.parent / f".{self.name}.lock"):
            yield


def _system_node() -> NodeSpec:
    """The one node that a cluster has without buying any, as AKS labels those of its system pool."""
    labels = {
        "agentpool": SYSTEM_NODE,
        "kubernetes.azure.com/agentpool": SYSTEM_NODE,
        "kubernetes.azure.com/mode": "system",
        "node.kubernetes.io/instance-type": "Standard_D2s_v5",
    }
    return NodeSpec(name=SYSTEM_NODE, provider_id=system_machine(SYSTEM_NODE), labels=labels)


def _hand_to_invoker(file: Path) -> None:
    """Under sudo: gives a file to the user who called, so that their kubectl can read it."""
    user, group = os.environ.get("SUDO_UID"), os.environ.get("SUDO_GID")
    if user and group:
        os.chown(file, int(user), int(group))
