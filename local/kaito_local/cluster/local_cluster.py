"""A whole local cluster, put together: `up` brings every part that is missing, `stop` ends all of it.

Each step looks first and does nothing when its part is there, so a second `up` changes nothing, and one after a failure
goes on where the last one ended.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kaito_local.cluster import dns, preflight
from kaito_local.cluster.charts import Charts, local_values, user_values
from kaito_local.cluster.cloud import CloudEmulator, system_machine
from kaito_local.cluster.controlplane import ADMINISTRATOR, ControlPlane, Ports, Settings
from kaito_local.cluster.keeper import running_keeper, start_keeper, stop_keeper
from kaito_local.cluster.pod_security import admission_argument
from kaito_local.cluster.registry import USER, Registry
from kaito_local.cluster.state import State, register_cluster, registered_clusters
from kaito_local.errors import CommandError, LocalError, StartError
from kaito_local.images import weights
from kaito_local.images.build import Builder
from kaito_local.images.mirrors import PUBLIC_REGISTRIES, Reference, mirrors_for_charts
from kaito_local.images.models import ensure_model_image
from kaito_local.images.product import cluster_images, preset_registry, product_images, tiny_model_image
from kaito_local.images.torch_index import takes_default_wheel, wheels_folder
from kaito_local.machine import gotools
from kaito_local.machine.folders import ROOT, cache_folder
from kaito_local.machine.gomodules import catalogue
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
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")


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
        try:
            done = subprocess.run(
                [self.directory / "bin" / "kubectl", *arguments],
                env=os.environ | self.kubectl_environment(),
                input=input,
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise CommandError(f"kubectl {' '.join(arguments)} is not done after {timeout:.0f} s") from None
        if done.returncode != 0:
            raise CommandError(f"kubectl {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout

    def environment(self) -> dict[str, str]:
        """What `kaito env` prints, without PATH; raises FileNotFoundError if the cluster was never up."""
        variables = self.kubectl_environment()
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

    def kubectl_environment(self) -> dict[str, str]:
        """What kubectl and helm need to know; their caches lie with the cluster that they are about."""
        variables = {"KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.directory / "kubectl-cache")}
        if any(os.environ.get(name) for name in _PROXIES):
            with suppress(FileNotFoundError):
                variables |= recorded_network(self.directory).without_proxy(os.environ)
        return variables

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
        self._link_programs(programs)

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
        known = weights.model_images(ROOT / "presets")
        own = {
            **state.weights,
            **{k: str(v) for k, v in weights.parse_weights(options.weights, known=list(known)).items()},
        }
        missing = self._missing_gib()
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
            published = self._images(own, known, building)
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
        self._link_programs(programs)
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

    def _images(
        self,
        own_weights: Mapping[str, str],
        known: Mapping[str, weights.ModelImage],
        programs: Future[dict[str, Path]],
    ) -> list[str]:
        """Builds and publishes all images; returns the references of those that nodes run."""
        builder = self._builder
        product, own = product_images(), cluster_images(cache=self.cache)
        with builder.alone():
            digests = builder.ensure(product)
            models = self._model_images(own_weights, known, builder)
            programs.result()  # two of the cluster's own images hold one of them
            digests |= builder.ensure(own)
            self.registry.publish(builder.layout, digests | models)
            builder.clean([*product, *own])
        return list(digests)

    def _model_images(
        self, own_weights: Mapping[str, str], known: Mapping[str, weights.ModelImage], builder: Builder
    ) -> dict[str, str]:
        """The digests of the presets' model images, which nodes do not run, by reference."""
        digests = {}
        presets = preset_registry()
        tiny: Path | None = None
        for preset, image in known.items():
            if preset in own_weights:
                folder = Path(own_weights[preset])
            elif image.architecture == weights.TINY_ARCHITECTURE:
                tiny = tiny or weights.tiny_weights(self.cache, train=self._train)
                self.progress.reused("weights", "tiny")
                folder = tiny
            else:
                continue
            reference = f"{presets}/kaito-{preset}:{image.tag}"
            digests[reference] = ensure_model_image(builder.layout, folder, path=image.path)
        return digests

    @property
    def _builder(self) -> Builder:
        return Builder(self.cache, wheels=wheels_folder(), progress=self.progress)

    def _train(self, folder: Path) -> None:
        with self.progress.step("training a tiny model of Phi-3's architecture", part="weights", name="tiny") as step:
            self._builder.extract(tiny_model_image(), folder, step=step)

    def _missing_gib(self) -> float:
        """What is still to be made needs about so much disk in the cache."""
        known, images, gib = catalogue(ROOT / "tools", self.cache), product_images(), 0.0
        if any(gotools.found(known[name]) is None for name in gotools.CLUSTER):
            gib += preflight.DISK_GIB_PROGRAMS
        if self._builder.missing(images):
            gib += preflight.DISK_GIB_IMAGES
            if takes_default_wheel("cpu", wheels=wheels_folder()):
                gib += preflight.DISK_GIB_CUDA
        return gib

    def _node_source(self, programs: Mapping[str, Path], published: Sequence[str]) -> NodeSource:
        registry, builder = self.registry, self._builder
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
            cloud.require_port()
            self.progress("starting the cloud emulator")
            start_keeper(self.directory, [cloud.program(source)], until=cluster.process)
        cloud.wait_ready()

    def _install_charts(self, state: State, options: UpOptions, programs: Mapping[str, Path]) -> None:
        network, registry = recorded_network(self.directory), self.registry
        charts = Charts(
            folder=ROOT / "charts",
            environment=self.kubectl_environment(),
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

    def _link_programs(self, programs: Mapping[str, Path]) -> None:
        """kubectl, helm and `kaito` itself, which may lie in a virtual environment, in one folder, for PATH."""
        folder = self.directory / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {name: programs[name] for name in ("kubectl", "helm") if name in programs}
        for name, program in {**wanted, "kaito": Path(sys.executable).parent / "kaito"}.items():
            partial = folder / f".{name}"
            partial.unlink(missing_ok=True)
            partial.symlink_to(program)
            partial.rename(folder / name)

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
