"""Whether a workload is left as it was made, and in what today's settings would make it otherwise.

Images, registries, environment and whatever else comes from the chart, the Catalog or this program's version are frozen
in the workload that was made of them: an upgrade must not load every model again. They come with the next change of
the Workspace itself, or with a roll, for which an annotation of the Workspace asks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from kaito_hooks.api import labels
from kaito_hooks.api.workspace import Workspace
from kaito_hooks.runtime import Obj
from kaito_hooks.workspace.children.upkeep import FINGERPRINT, contains
from kaito_hooks.workspace.decision.revision import workload_hash_of
from kaito_hooks.workspace.status import conditions
from kaito_hooks.workspace.supply.placement import pod_of

MOST_TOLD = 3
_PARTS = (("initContainers", "init container"), ("containers", "container"))


def made_for(live: Obj) -> str | None:
    """The hash of what its Workspace asked for when the workload was made; None of a controller that froze nothing."""
    return (live["metadata"].get("labels") or {}).get(labels.WORKLOAD_HASH)


def is_frozen(workspace: Workspace, live: Obj, *, revision: int) -> bool:
    """Whether the workload stays as it is: the Workspace asks for the same Pods as before, and for no roll.

    A workload of a controller that froze nothing has no hash; the ``revision`` that it was made for says as much.
    """
    made = _annotations(live)
    if FINGERPRINT not in made or not pod_of(live):
        return False
    if (asked := made_for(live)) is None:
        return made.get(labels.REVISION) == str(revision) and not _is_roll_asked_since(workspace)
    return asked == workload_hash_of(workspace.raw) and not is_roll_asked(workspace, live)


def is_roll_asked(workspace: Workspace, live: Obj) -> bool:
    """Whether the Workspace has a roll's annotation with a value that its workload does not have."""
    made = _annotations(live)
    return any(workspace.annotations.get(name) not in (None, made.get(name)) for name in labels.ROLLS)


def _is_roll_asked_since(workspace: Workspace) -> bool:
    """Whether a roll was asked for of a workload that a controller made which knows of none.

    By hand: no other one is. By ourselves: after its drift was told; an earlier one was over before that controller
    came back.
    """
    if labels.ROLL in workspace.annotations:
        return True
    asked, told = workspace.annotations.get(labels.AUTOMATIC_ROLL), workspace.condition(conditions.WORKLOAD_UP_TO_DATE)
    if asked is None or told is None or told.get("reason") != conditions.PLATFORM_CHANGED:
        return False
    # Both are times that we wrote, in one form, which sorts.
    return asked >= str(told["lastTransitionTime"])


def with_earlier_rolls(live: Obj, wanted: Obj) -> Obj:
    """The wanted workload, which remembers what was asked for even when the Workspace's annotation has gone."""
    metadata, made = wanted["metadata"], _annotations(live)
    earlier = {name: made[name] for name in labels.ROLLS if name in made}
    return {**wanted, "metadata": {**metadata, "annotations": {**earlier, **metadata["annotations"]}}}


def placed_as(live: Obj, wanted: Obj) -> Obj:
    """The wanted workload with the affinity of the live one: which nodes come, go or are preferred rolls nothing."""
    affinity = pod_of(live).get("affinity")
    template = wanted["spec"]["template"]
    if affinity is None or "affinity" not in template["spec"]:
        return wanted
    placed = {**template, "spec": {**template["spec"], "affinity": affinity}}
    return {**wanted, "spec": {**wanted["spec"], "template": placed}}


def frozen(live: Obj, wanted: Obj) -> Obj:
    """The wanted workload, doing all that the live one does, and nothing else."""
    made, metadata = _annotations(live), wanted["metadata"]
    kept = {name: made[name] for name in (FINGERPRINT, labels.RUNTIME) if name in made}
    others = {name: value for name, value in metadata["annotations"].items() if name != labels.RUNTIME}
    metadata = {**metadata, "annotations": {**others, **kept}}
    return {"apiVersion": "apps/v1", "kind": live["kind"], "metadata": metadata, "spec": live["spec"]}


def describe(live: Obj, wanted: Obj) -> str:
    """In what the workload differs from the wanted one; values are told of images alone, others may be secret."""
    if live["kind"] != wanted["kind"]:
        return f"a {wanted['kind']} would take the place of the {live['kind']}"
    found = list(_differences(live["spec"], wanted["spec"])) or ["fields that are set no longer"]
    more = len(found) - MOST_TOLD
    return "; ".join(found[:MOST_TOLD]) + (f"; and {more} more" if more > 0 else "")


def _differences(live: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    templates = [spec.get("template") or {} for spec in (live, wanted)]
    pods = [template.get("spec") or {} for template in templates]
    for part, kind in _PARTS:
        have, want = ({str(c.get("name")): c for c in pod.get(part) or ()} for pod in pods)
        yield from (f"{kind} {name}" for name in sorted(want.keys() ^ have.keys()))
        for name in want:
            if name in have:
                yield from _of_container(f"{kind} {name}", have[name], want[name])
    yield from _keys(*pods, but=[part for part, _ in _PARTS])
    marks = [template.get("metadata") or {} for template in templates]
    yield from (f"{key} of the Pods" for key in _keys(*marks, but=()))
    yield from _keys(live, wanted, but=("template", "replicas"))


def _of_container(who: str, have: Mapping[str, Any], want: Mapping[str, Any]) -> Iterator[str]:
    if have.get("image") != want.get("image"):
        yield f"the image of {who} is {have.get('image')} and would be {want.get('image')}"
    before, after = ({str(e.get("name")): e for e in c.get("env") or ()} for c in (have, want))
    changed = [n for n in after if n not in before or not contains(before[n], after[n])]
    changed += [n for n in before if n not in after]
    if changed:
        yield f"{', '.join(changed)} of {who}"
    yield from (f"{key} of {who}" for key in _keys(have, want, but=("image", "env")))


def _keys(have: Mapping[str, Any], want: Mapping[str, Any], *, but: Collection[str]) -> Iterator[str]:
    yield from (key for key in want if key not in but and not contains(have, {key: want[key]}))


def _annotations(obj: Obj) -> Mapping[str, str]:
    return obj["metadata"].get("annotations") or {}
