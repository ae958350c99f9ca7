"""What a process asks of the API server, told from the audit log, beside what a chart's rules allow it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import yaml

Right = tuple[str, str, str]
"""API group, resource or ``resource/subresource``, verb."""


def arguments(folder: Path, namespace: str) -> tuple[str, ...]:
    """Of an API server that writes down in ``folder`` what accounts of that namespace ask for."""
    policy = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [{"level": "Metadata", "userGroups": [f"system:serviceaccounts:{namespace}"]}, {"level": "None"}],
    }
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    return f"--audit-policy-file={folder / 'policy.yaml'}", f"--audit-log-path={folder / 'audit.log'}"


def rights(documents: Iterable[dict[str, Any]]) -> set[Right]:
    """Every single right that these roles give."""
    rules = [rule for document in documents for rule in document.get("rules") or ()]
    return {right for r in rules for right in product(r["apiGroups"], r["resources"], r["verbs"])}


def read(folder: Path) -> tuple[set[Right], set[Right]]:
    """What was asked for so far, and what of it was refused for want of a right."""
    asked: set[Right] = set()
    refused: set[Right] = set()
    for line in (folder / "audit.log").read_text().splitlines():
        entry: dict[str, Any] = json.loads(line)
        reference = entry.get("objectRef")
        if reference is None:
            continue
        resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
        right = (reference.get("apiGroup", ""), resource, entry["verb"])
        asked.add(right)
        if entry.get("responseStatus", {}).get("code") == 403:
            refused.add(right)
    return asked, refused
