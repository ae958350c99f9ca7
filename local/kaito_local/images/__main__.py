"""The product's images without a cluster.

python -m kaito_local.images build [--variants cpu,cu126,vllm] [NAME ...]
python -m kaito_local.images push --registry registry.example.com/kaito [--variants ...] [--plain-http] [--sign KEY]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence

from kaito_local.errors import LocalError, MissingPrerequisite, UsageError
from kaito_local.images.build import DEBIAN_PACKAGES, Builder
from kaito_local.images.product import VARIANTS, product_images, revision_of
from kaito_local.images.publish import PROGRAMS, Registry, publish
from kaito_local.images.torch_index import wheels_folder
from kaito_local.machine import gotools
from kaito_local.machine.folders import ROOT, cache_folder
from kaito_local.machine.progress import Progress


def require_tools() -> None:
    """Raises MissingPrerequisite when this machine cannot build images."""
    if os.geteuid() != 0:
        raise MissingPrerequisite(
            "building images needs root (mmdebstrap and buildah make file systems); run it with sudo"
        )
    missing = sorted({package for program, package in DEBIAN_PACKAGES.items() if shutil.which(program) is None})
    if missing:
        raise MissingPrerequisite(
            f"missing Debian packages: {' '.join(missing)}; run: apt-get install {' '.join(missing)}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 0, or 1 with a sentence."""
    parser = argparse.ArgumentParser(prog="python -m kaito_local.images", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    building = verbs.add_parser("build", help="build the product's images")
    pushing = verbs.add_parser("push", help="build them and copy them to a registry")
    pushing.add_argument("--registry", required=True, help="host and folder, such as registry.example.com/kaito")
    pushing.add_argument("--plain-http", action="store_true", help="speak to the registry without TLS")
    pushing.add_argument("--sign", default="", metavar="KEY", help="sign with this key of `notation key list`")
    for verb in (building, pushing):
        verb.add_argument(
            "--variants",
            default="cpu",
            help="of serving and tuning: cpu, cu126, vllm (serving only), several with commas",
        )
        verb.add_argument("names", nargs="*", help="kaito-hooks, kaito-serving, kaito-tuning; all without it")
    options = parser.parse_args(arguments)
    progress = Progress.to(sys.stderr)
    try:
        require_tools()
        variants = options.variants.split(",")
        if not set(variants) <= set(VARIANTS):
            raise UsageError(f"--variants {options.variants}: there are {', '.join(VARIANTS)}")
        # A revision is for those who pull: without a push no commit makes images anew.
        revision = revision_of() if options.verb == "push" else ""
        images = product_images(variants, revision=revision)
        unknown = set(options.names) - {image.name for image in images}
        if unknown:
            raise UsageError(f"there is no image {', '.join(sorted(unknown))}")
        images = [image for image in images if not options.names or image.name in options.names]
        builder = Builder(cache_folder(), wheels=wheels_folder(), progress=progress)
        if options.verb == "push":
            programs = gotools.ensure(PROGRAMS, tools=ROOT / "tools", cache=cache_folder(), progress=progress)
        with builder.alone():
            built = builder.ensure(images)
            if options.verb == "build":
                builder.clean(images)
        if options.verb == "push":
            if not revision:
                print("the tree has changes that no commit has: the images name no revision", file=sys.stderr)
            registry = Registry(options.registry, plain_http=options.plain_http, key=options.sign)
            for target in publish(builder, images, registry, programs=programs):
                print(target)
        else:
            for image in images:
                print(f"{image.reference} {built[image.reference]} {builder.size(image) / 1e6:.0f} MB")
    except LocalError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is built stays in the cache", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
