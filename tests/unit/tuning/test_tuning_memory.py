"""What presets/ says of a tuning's memory, against models of the real shapes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tiny_model import tiny_model
from tests.unit.tuning.sizing import CONTEXT_GIB, NF4_BYTES, SHAPES, TOKENS, counted
from tests.unit.tuning.test_tuning_config import QLORA

from kaito_tuning.config import KnownFields, parse
from kaito_tuning.training import model
from kaito_tuning.training.precision import Device

PRESETS = Path(__file__).parents[3] / "presets"
METHODS = ("qlora", "lora")


def tunable() -> dict[str, dict[str, Any]]:
    files = [yaml.safe_load(path.read_text()) for path in sorted((PRESETS / "models").glob("*.yaml"))]
    return {name: entry["tuning"] for models in files for name, entry in models.items() if "tuning" in entry}


@cache
def table() -> dict[str, list[float]]:
    """The README's rows: linear, other, adapter, largest (millions of weights), MiB a token, GiB by method."""
    shown = {}
    for line in (PRESETS / "README.md").read_text().splitlines():
        names, *cells = line.strip("| ").split(" | ")
        if len(cells) == 7 and names.startswith("`"):
            numbers = [float(cell.replace(",", "")) for cell in cells]
            shown |= dict.fromkeys(names.strip("`").split(", "), numbers)
    return shown


def test_every_tunable_preset_has_its_shape_and_its_row() -> None:
    assert set(tunable()) == set(SHAPES) == set(table())


@pytest.mark.parametrize("preset", SHAPES)
def test_the_readme_says_what_is_counted(preset: str) -> None:
    found = counted(SHAPES[preset])
    weights = [round(n / 1e6, 1) for n in (found.linear, found.other, found.adapter, found.largest)]
    per_token = round(found.activations / TOKENS / 2**20, 2)
    assert table()[preset] == [*weights, per_token, *(round(found.gib(method), 1) for method in METHODS)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", SHAPES)
def test_a_preset_asks_for_what_is_counted_and_little_more(preset: str, method: str) -> None:
    need = counted(SHAPES[preset]).gib(method)
    asked = tunable()[preset][method]["gpuMemoryGiB"]
    assert need <= asked <= 1.15 * need + 1.5


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("phi-2", 2_779_683_840),
        ("phi-3-mini-4k-instruct", 3_821_079_552),
        ("phi-3-medium-4k-instruct", 13_960_238_080),
        ("mistral-7b", 7_248_023_552),
        # Their files hold the embeddings a second time, as the head: 65,024 rows.
        ("falcon-7b", 7_217_189_760 - 65_024 * 4544),
        ("falcon-40b", 41_835_970_560 - 65_024 * 8192),
    ],
)
def test_a_shape_has_as_many_parameters_as_its_model_was_published_with(preset: str, parameters: int) -> None:
    found = counted(SHAPES[preset])
    assert found.linear + found.other == parameters


def test_a_quantised_model_takes_the_bytes_that_are_counted_for_it() -> None:
    """The tiny model as the trainer loads it; what is not quantised stays in 16 bits."""
    from bitsandbytes.nn import Linear4bit

    config = parse(QLORA, known=KnownFields.installed())
    loaded = model.load(tiny_model(), config, device=Device.here()).model
    weights = stored = 0
    quantised = set()
    for module in loaded.modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            weights += module.in_features * module.out_features
            stored += module.weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
            quantised.add(id(module.weight))
    assert stored / weights == pytest.approx(NF4_BYTES, rel=0.01)
    others = [p for p in loaded.parameters() if id(p) not in quantised]
    assert {parameter.element_size() for parameter in others} == {2}


def test_what_is_assumed_leaves_room_for_phi_3_mini_on_the_smallest_gpus() -> None:
    """16 GiB, of which the driver leaves 15.7."""
    found = counted(SHAPES["phi-3-mini-4k-instruct"])
    assert CONTEXT_GIB > 1
    assert all(found.gib(method) < 15.7 for method in METHODS)
