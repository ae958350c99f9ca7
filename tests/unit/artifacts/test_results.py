"""What a training left, as it is told and written into an image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kaito_hooks.artifacts.results import MESSAGE_LIMIT, Results, lineage, manifest_annotations, message

DIGEST = "sha256:" + "d" * 64
LINEAGE = {
    "base-model": "microsoft/Phi-3-mini-4k-instruct",
    "data-digest": "sha256:" + "a" * 64,
    "versions": "torch=2.13.0",
    "metrics": '{"loss": 0.25}',
}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (json.dumps(LINEAGE), LINEAGE),
        (None, {}),
        ("[]", {}),
        ("{", {}),
        (json.dumps({"seed": 42, "Upper": "x", "a/b": "x", "": "x", "-a": "x", "a" * 64: "x", "ok": "x"}), {"ok": "x"}),
        (json.dumps({"metrics": "x" * 10_000}), {"metrics": "x" * 2048}),
    ],
    ids=["whole", "none", "no map", "no JSON", "names that no annotation has", "a long text"],
)
def test_a_lineage_is_read_as_far_as_it_can_be_annotated(
    tmp_path: Path, written: str | None, read: dict[str, str]
) -> None:
    if written is not None:
        (tmp_path / "lineage.json").write_text(written)
    assert lineage(tmp_path) == read


def test_the_annotations_have_the_project_s_prefix() -> None:
    assert manifest_annotations({"data-digest": "sha256:aa"}) == {"kaito.sh/data-digest": "sha256:aa"}


def test_a_message_repeats_the_lineage_without_what_it_says_elsewhere() -> None:
    text = message(image="r.io/a:1", digest=DIGEST, metrics={"loss": 0.25}, lineage=LINEAGE)
    assert json.loads(text) == {
        "image": "r.io/a:1",
        "digest": DIGEST,
        "metrics": {"loss": 0.25},
        "lineage": {"base-model": LINEAGE["base-model"], "data-digest": LINEAGE["data-digest"]},
    }


@pytest.mark.parametrize("text", ["x", "ä", '"', "\u2028"])
def test_a_message_fits_what_the_kubelet_keeps_and_never_loses_its_digest(text: str) -> None:
    long = {f"key-{number}": text * 2048 for number in range(5)} | {"seed": "42"}
    told = message(image="r.io/a:1", digest=DIGEST, metrics={"loss": 0.25}, lineage=long)
    assert len(told.encode()) <= MESSAGE_LIMIT
    assert json.loads(told)["digest"] == DIGEST
    assert json.loads(told)["lineage"]["seed"] == "42"


@pytest.mark.parametrize(
    ("metrics", "numbers"),
    [
        ({"loss": 0.25, "steps": 3}, {"loss": 0.25, "steps": 3}),
        ({"loss": None, "text": "x", "yes": True, "list": [1]}, {}),
        (None, {}),
    ],
)
def test_only_numbers_are_metrics(tmp_path: Path, metrics: Any, numbers: dict[str, float]) -> None:
    (tmp_path / "progress.json").write_text(json.dumps({"metrics": metrics}))
    assert Results.read(tmp_path).metrics == numbers


def test_a_number_without_a_size_is_no_metric(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text('{"metrics": {"loss": NaN, "evalLoss": Infinity, "perplexity": 2}}')
    assert Results.read(tmp_path).metrics == {"perplexity": 2}


def test_a_folder_where_nothing_was_left_has_no_results(tmp_path: Path) -> None:
    assert Results.read(tmp_path) == Results.read(None) == Results()
