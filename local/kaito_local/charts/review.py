"""What kube-score says of the renders, beside the findings that stay for a reason (charts/kube-score.yaml)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kaito_local.errors import CommandError

_WARNING = 5
"""kube-score's grades: 1 critical, 5 warning, 7 almost good, 10 good."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A check that an object fails, with kube-score's words."""

    check: str
    object: str
    said: str

    def __str__(self) -> str:
        return f"{self.object}: {self.check}: {self.said}"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the findings of ``check`` about ``objects``, which are ``Kind name``, stay; no objects are all of them."""

    check: str
    objects: frozenset[str]
    why: str

    def covers(self, finding: Finding) -> bool:
        """Whether this is the reason of that finding."""
        return self.check == finding.check and (not self.objects or finding.object in self.objects)


def reasons(file: Path) -> list[Reason]:
    """Those that a file of reasons gives."""
    return [
        Reason(entry["check"], frozenset(entry.get("objects", ())), entry["why"])
        for entry in yaml.safe_load(file.read_text())
    ]


def findings(rendered: str, *, kube_score: Path, kubernetes: str) -> list[Finding]:
    """Every check that an object of a render fails, warnings too. ``kubernetes``: its version, as ``v1.34``."""
    command: list[str | Path] = [
        kube_score,
        "score",
        f"--kubernetes-version={kubernetes}",
        "--output-format=json",
        "-",
    ]
    done = subprocess.run(command, input=rendered, capture_output=True, text=True, check=False, timeout=60)
    try:
        scored = json.loads(done.stdout)
    except ValueError:
        raise CommandError(f"kube-score failed: {done.stderr.strip()}") from None
    return [
        Finding(check["check"]["id"], f"{found['type_meta']['kind']} {found['object_meta']['name']}", _said(check))
        for found in scored
        for check in found["checks"]
        if not check["skipped"] and check["grade"] <= _WARNING
    ]


def _said(check: Mapping[str, Any]) -> str:
    return "; ".join(comment["summary"] for comment in check["comments"] or ()) or check["check"]["name"]


def unexplained(found: Iterable[Finding], given: Iterable[Reason]) -> list[str]:
    """The findings without a reason, and the reasons and their objects without a finding."""
    found, given = list(dict.fromkeys(found)), list(given)
    bare = [str(finding) for finding in found if not any(reason.covers(finding) for reason in given)]
    for reason in given:
        covered = {finding.object for finding in found if reason.covers(finding)}
        if not covered:
            bare.append(f"{reason.check} has a reason, and no object fails it")
        bare += [f"{reason.check} has a reason for {name}, which passes" for name in sorted(reason.objects - covered)]
    return bare
