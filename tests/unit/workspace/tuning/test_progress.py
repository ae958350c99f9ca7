"""How far a training is, in words."""

from __future__ import annotations

import pytest

from kaito_hooks.workspace.tuning.progress import describe


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (
            {
                "phase": "Training",
                "progressPercentage": 42,
                "epoch": 0.0,
                "epochs": 3,
                "estimatedRemainingSeconds": 720,
                "metrics": {"loss": 1.2345},
            },
            "epoch 1/3, 42 %, loss 1.23, 12 min left",
        ),
        ({"phase": "Training", "epoch": 3.0, "epochs": 3.0, "progressPercentage": 100}, "epoch 3/3, 100 %"),
        ({"phase": "Training", "estimatedRemainingSeconds": 59}, "59 s left"),
        ({"phase": "Training", "estimatedRemainingSeconds": 12000}, "3 h 20 min left"),
        ({"phase": "Training", "epoch": "x", "metrics": {"loss": float("nan")}, "progressPercentage": None}, ""),
        ({"phase": "LoadingModel", "progressPercentage": 0}, "loading the model"),
        ({"phase": "Training", "epoch": 10**400, "epochs": 10**400, "progressPercentage": -(10**400)}, ""),
        ({}, ""),
    ],
)
def test_progress_is_told_in_a_few_words(said: dict[str, object], text: str) -> None:
    assert describe(said) == text
