"""What all images of the product have in common, and what is taken out of them."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from kaito_local.images.build import Image
from kaito_local.images.product import VARIANTS, product_images, revision_of

ROOT = Path(__file__).parents[3]
IMAGES = product_images(VARIANTS, revision="abc")
VERSION = yaml.safe_load((ROOT / "charts" / "kaito" / "Chart.yaml").read_text())["appVersion"]
TRIM = ROOT / "images" / "trim.py"
LOOK = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, f"{sys.argv[1]}."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(json.dumps([m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)]))
"""


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.key)
def test_an_image_runs_as_nobody_and_says_what_it_is(image: Image) -> None:
    text = image.dockerfile.read_text()
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE)[-1] == "65532:65532"
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]+)"', text))
    assert labels.keys() == {"title", "description", "licenses", "source"}
    assert labels["title"] == image.name
    assert labels["licenses"] == "Apache-2.0"
    prefix = "org.opencontainers.image"
    assert image.labels == (f"{prefix}.version={VERSION}", f"{prefix}.revision=abc")


def test_without_a_revision_no_commit_makes_images_anew() -> None:
    assert not any("revision" in label for image in product_images() for label in image.labels)


def test_a_checkout_with_changes_has_no_revision(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.com")
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert revision_of(tmp_path / "nowhere") == ""
    git("init", "--quiet")
    (tmp_path / "a").write_text("a")
    git("add", "--all")
    git("commit", "--quiet", "--message", "a")
    assert revision_of(tmp_path) == git("rev-parse", "HEAD").strip()
    (tmp_path / "a").write_text("b")
    assert revision_of(tmp_path) == ""


@pytest.mark.parametrize(
    ("variant", "kept"),
    [("cpu", {"cpu"}), ("cu126", {"cpu", "cuda126"}), ("", {"cpu"})],
)
def test_an_image_keeps_the_kernels_of_its_variant(tmp_path: Path, variant: str, kept: set[str]) -> None:
    libraries = {f"bitsandbytes/libbitsandbytes_{name}.so" for name in ("cpu", "cuda118", "cuda126", "rocm72")}
    others = {"torch/bin/torch_shm_manager", "torch/lib/libtorch.so", "numpy/testing/a.py", "zstandard/backend_c.so"}
    gone = {"torch/bin/test_api", "torch/bin/protoc", "torch/test/a", "numpy/a/tests/b.py", "kubernetes/aio/a.py"}
    for name in (*libraries, *others, *gone):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x" * 1000)
    done = subprocess.run([sys.executable, TRIM, tmp_path, variant], capture_output=True, text=True, check=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == others | {f"bitsandbytes/libbitsandbytes_{name}.so" for name in kept}
    assert " MB of " in done.stdout


@pytest.mark.parametrize("package", ["kaito_hooks", "kaito_serving", "kaito_tuning"])
def test_nothing_is_taken_out_that_a_program_imports(package: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOOK, package], capture_output=True, text=True, check=True, cwd="/")
    imported = {Path(file) for file in json.loads(done.stdout.splitlines()[-1])}
    spec = importlib.util.find_spec("yaml")
    assert spec is not None
    assert spec.origin is not None
    gone = set(runpy.run_path(str(TRIM))["unused"](Path(spec.origin).parents[1], "cpu"))
    assert gone
    assert not [file for file in imported if gone & {file, *file.parents}]
    if package == "kaito_hooks":
        # hooks/Dockerfile uninstalls these.
        names = re.findall(r"uninstall [^&]*?\\\n\s+([a-z -]+) &&", (ROOT / "hooks" / "Dockerfile").read_text())[0]
        folders = {name.replace("-", "_") for name in names.split()}
        assert "aiohttp" in folders
        assert not [file for file in imported if folders & set(file.parts)]
