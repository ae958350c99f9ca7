"""The rules on what may change in a Workspace, for clusters without the admission policies and changes around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kaito_hooks.api.workspace import Workspace
from kaito_hooks.workspace.rules.validate import Problem

IMMUTABLE = "field is immutable"
ANEW = "delete the Workspace and apply it again to change it"


def check_change(old: Workspace, new: Workspace) -> list[Problem]:
    """Every rule on changes (U0-U7, U9-U11) that ``new`` breaks; U8 and the like are rules of ``validate.check``."""
    broken = (
        *_toggled(old, new),
        *_changed_resource(old, new),
        *_changed_inference(old, new),
        *_changed_tuning(old, new),
    )
    return [replace(problem, message=f"{problem.message}; {ANEW}") for problem in broken]


def _toggled(old: Workspace, new: Workspace) -> Iterator[Problem]:
    if (old.resource is None) != (new.resource is None):
        yield Problem("U0", "resource", IMMUTABLE)
    if (old.inference is None) != (new.inference is None):
        yield Problem("U1", "inference", "Inference field cannot be toggled once set")
    if (old.tuning is None) != (new.tuning is None):
        yield Problem("U2", "tuning", "Tuning field cannot be toggled once set")


def _changed_resource(old: Workspace, new: Workspace) -> Iterator[Problem]:
    before, after = old.resource, new.resource
    if before is None or after is None:
        return
    if before.count != after.count:
        yield Problem("U3", "resource.count", IMMUTABLE)
    if before.instance_type != after.instance_type:
        yield Problem("U4", "resource.instanceType", IMMUTABLE)
    selectors = [(w.raw.get("resource") or {}).get("labelSelector") for w in (old, new)]
    if selectors[0] != selectors[1]:
        yield Problem("U5", "resource.labelSelector", IMMUTABLE)


def _changed_inference(old: Workspace, new: Workspace) -> Iterator[Problem]:
    before, after = old.inference, new.inference
    if before is None or after is None:
        return
    if before.preset != after.preset:
        rule = "U0" if before.preset is None or after.preset is None else "U6"
        yield Problem(rule, "inference.preset", IMMUTABLE)
    if (before.template is None) != (after.template is None):
        yield Problem("U7", "inference.template", "field cannot be unset/set if it was set/unset")


def _changed_tuning(old: Workspace, new: Workspace) -> Iterator[Problem]:
    before, after = old.tuning, new.tuning
    if before is None or after is None:
        return
    for field, had, has in (
        ("preset", before.preset, after.preset),
        ("method", before.method or None, after.method or None),
        ("input", before.input, after.input),
        ("output", before.output, after.output),
    ):
        if (had is None) != (has is None):
            yield Problem("U0", f"tuning.{field}", IMMUTABLE)
    if before.preset and after.preset and before.preset != after.preset:
        yield Problem("U9", "tuning", "Preset cannot be changed")
    if before.method and after.method and before.method != after.method:
        yield Problem("U10", "tuning", "Method cannot be changed")
    if before.input and after.input and before.input.name != after.input.name:
        yield Problem("U11", "tuning.input", "During tuning Name field cannot be changed once set")
