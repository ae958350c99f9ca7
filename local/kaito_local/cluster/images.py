"""The images of a local cluster: the product's, the cluster's own and the presets' model images, in its registry."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from kaito_local.cluster import preflight
from kaito_local.cluster.registry import Registry
from kaito_local.images import weights
from kaito_local.images.build import Builder
from kaito_local.images.models import ensure_model_image
from kaito_local.images.product import cluster_images, preset_registry, product_images, tiny_model_image
from kaito_local.images.torch_index import takes_default_wheel, wheels_folder
from kaito_local.machine import gotools
from kaito_local.machine.folders import ROOT
from kaito_local.machine.gomodules import catalogue
from kaito_local.machine.progress import QUIET, Progress


@dataclass(frozen=True, slots=True)
class ClusterImages:
    """What the cluster's nodes run and its Pods pull, built below ``cache``."""

    cache: Path
    progress: Progress = QUIET

    @property
    def builder(self) -> Builder:
        """What builds them."""
        return Builder(self.cache, wheels=wheels_folder(), progress=self.progress)

    def missing_gib(self) -> float:
        """The disk in the cache that is needed for what is still to be made, the programs included."""
        known, images, gib = catalogue(ROOT / "tools", self.cache), product_images(), 0.0
        if any(gotools.found(known[name]) is None for name in gotools.CLUSTER):
            gib += preflight.DISK_GIB_PROGRAMS
        if self.builder.missing(images):
            gib += preflight.DISK_GIB_IMAGES
            if takes_default_wheel("cpu", wheels=wheels_folder()):
                gib += preflight.DISK_GIB_CUDA
        return gib

    def publish(
        self, registry: Registry, *, own_weights: Mapping[str, str], programs: Future[dict[str, Path]]
    ) -> list[str]:
        """Builds and publishes all images; returns the references of those that nodes run.

        ``own_weights`` are the user's folders by preset. Raises BuildError, also that of ``programs``.
        """
        builder = self.builder
        product, own = product_images(), cluster_images(cache=self.cache)
        with builder.alone():
            digests = builder.ensure(product)
            models = self._model_images(own_weights, builder)
            programs.result()  # two of the cluster's own images hold one of them
            digests |= builder.ensure(own)
            registry.publish(builder.layout, digests | models)
            builder.clean([*product, *own])
        return list(digests)

    def _model_images(self, own_weights: Mapping[str, str], builder: Builder) -> dict[str, str]:
        """The digests of the presets' model images, which nodes do not run, by reference."""
        digests = {}
        presets = preset_registry()
        tiny: Path | None = None
        for preset, image in weights.model_images(ROOT / "presets").items():
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

    def _train(self, folder: Path) -> None:
        with self.progress.step("training a tiny model of Phi-3's architecture", part="weights", name="tiny") as step:
            self.builder.extract(tiny_model_image(), folder, step=step)
