"""Pod security of a local cluster: `restricted` in every namespace, as in the strictest of its users' clusters.

The API server's own admission refuses what the standard does not allow
(https://kubernetes.io/docs/tasks/configure-pod-container/enforce-standards-admission-controller/). A namespace's label
``pod-security.kubernetes.io/enforce`` goes before what is said here.
"""

from __future__ import annotations

import json
from pathlib import Path

from kaito_local.machine.pki import write_private


def admission_argument(directory: Path, *, administrator: str) -> str:
    """The API server's argument that makes ``restricted`` the rule; writes the configuration into ``directory``.

    Exempt is one user alone, ``administrator``, and so are the Pods that they make by hand: ``kubectl run`` of the
    quick start cannot say what ``restricted`` wants to hear. The Pods of Deployments, Jobs and the like are made by the
    controller manager, whoever wrote those, and are not exempt.
    """
    levels = dict.fromkeys(("enforce", "audit", "warn"), "restricted")
    versions = {f"{mode}-version": "latest" for mode in levels}
    security = {
        "apiVersion": "pod-security.admission.config.k8s.io/v1",
        "kind": "PodSecurityConfiguration",
        "defaults": levels | versions,
        "exemptions": {"usernames": [administrator], "runtimeClasses": [], "namespaces": []},
    }
    document = {
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AdmissionConfiguration",
        "plugins": [{"name": "PodSecurity", "configuration": security}],
    }
    file = directory / "admission.yaml"
    # JSON is YAML.
    write_private(file, json.dumps(document, indent=1).encode())
    return f"--admission-control-config-file={file}"
