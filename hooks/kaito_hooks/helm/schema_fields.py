"""Which fields the schemas of a CRD know: the API server drops all others from an object as soon as it is written."""

from __future__ import annotations

from collections.abc import Iterator

from kaito_hooks.runtime import Obj

_OPEN = "x-kubernetes-preserve-unknown-fields"


def lost(found: Obj, wanted: Obj) -> list[str]:
    """Fields that ``found`` keeps and ``wanted`` would drop, without those below one that is dropped itself.

    As kubectl explain names them: ``status.startup``; ``[]`` is any item of a list, ``*`` any key of a map. Versions
    that only one of the two CRDs has are not looked at.
    """
    theirs, ours = _schemas(found), _schemas(wanted)
    names = {
        name for version, schema in theirs.items() if version in ours for name in _lost(schema, ours[version], path="")
    }
    return sorted(names)


def _schemas(crd: Obj) -> dict[str, Obj]:
    return {
        str(version["name"]): (version.get("schema") or {}).get("openAPIV3Schema") or {}
        for version in crd["spec"]["versions"]
    }


def _lost(found: Obj, wanted: Obj, *, path: str) -> Iterator[str]:
    if wanted.get(_OPEN):
        return
    for name, inner, counterpart in _below(found, wanted):
        below = name if name == "[]" or not path else f".{name}"
        if counterpart is None:
            yield f"{path}{below}"
        else:
            yield from _lost(inner, counterpart, path=f"{path}{below}")


def _below(found: Obj, wanted: Obj) -> Iterator[tuple[str, Obj, Obj | None]]:
    """Name, schema, and the other's schema of all that may be inside."""
    known = wanted.get("properties") or {}
    for name, inner in (found.get("properties") or {}).items():
        yield name, inner, known.get(name)
    for key, name in (("items", "[]"), ("additionalProperties", "*")):
        inner, counterpart = found.get(key), wanted.get(key)
        if isinstance(inner, dict):
            yield name, inner, counterpart if isinstance(counterpart, dict) else None
