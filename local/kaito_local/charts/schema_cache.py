"""The JSON schemas of all kinds that the charts may render, asked once from an API server of ours that has their CRDs.

They lie in the user's cache; another kube-apiserver or another CRD has a folder of its own. The Prometheus operator's
CRDs come from its Go module, which tools/prometheus-operator pins.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from kaito_local.charts import json_schemas
from kaito_local.cluster.controlplane import ControlPlane
from kaito_local.errors import CommandError, MissingPrerequisite, StartError
from kaito_local.machine.gobuild import Go
from kaito_local.machine.gomodules import GoModule

_OPERATOR = "github.com/prometheus-operator/prometheus-operator"
_OPERATOR_CRDS = "example/prometheus-operator-crd/monitoring.coreos.com_{}.yaml"
_OPERATOR_KINDS = ("podmonitors", "prometheusrules", "servicemonitors")
_PUBLISHED_WITHIN = 60.0


def schemas(root: Path, *, programs: Mapping[str, Path], cache: Path) -> Path:
    """The folder with the schemas, each called as ``json_schemas.LOCATION`` says.

    ``programs`` are a control plane's. Raises StartError when the API server does not start, MissingPrerequisite when
    the operator's module is not to be had.
    """
    crds = sorted((root / "charts").glob("*/crds/*.yaml"))
    module = root / "tools" / "prometheus-operator"
    makers = [*crds, module / "go.sum", Path(__file__), Path(json_schemas.__file__)]
    folder = cache / "schemas" / _digest(makers, programs["kube-apiserver"])
    if not folder.exists():
        crds += _operator_crds(GoModule.read(module))
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as work:
            written = Path(work) / "schemas"
            written.mkdir()
            for document in _documents(Path(work), crds, programs):
                for name, schema in json_schemas.kinds(document):
                    (written / name).write_text(json.dumps(schema, separators=(",", ":")))
            if not folder.exists():
                shutil.move(written, folder)
    return folder


def _documents(work: Path, crds: Sequence[Path], programs: Mapping[str, Path]) -> list[Mapping[str, object]]:
    """What an API server with these CRDs says of each of its groups; it takes a moment to tell of a new kind."""
    wanted = [kind for file in crds for kind in _kinds(file)]
    with ControlPlane.start(work / "plane", programs=programs, controller_manager=False, scheduler=False) as plane:
        plane.kubectl("create", *(f"--filename={file}" for file in crds))
        deadline = time.monotonic() + _PUBLISHED_WITHIN
        while lacking := [kind for group, kind in wanted if f'"kind":"{kind}"' not in _document(plane, group)]:
            if time.monotonic() > deadline:
                raise StartError(f"the API server does not publish the schema of {', '.join(lacking)} at /openapi/v3")
            time.sleep(0.2)
        groups = json.loads(plane.kubectl("get", "--raw", "/openapi/v3"))["paths"]
        return [json.loads(_document(plane, group)) for group in groups]


def _document(plane: ControlPlane, group: str) -> str:
    try:
        return plane.kubectl("get", "--raw", f"/openapi/v3/{group}")
    except CommandError:
        return "{}"


def _kinds(crd: Path) -> list[tuple[str, str]]:
    spec = yaml.safe_load(crd.read_text())["spec"]
    return [(f"apis/{spec['group']}/{version['name']}", spec["names"]["kind"]) for version in spec["versions"]]


def _operator_crds(module: GoModule) -> list[Path]:
    wanted = f"{_OPERATOR}@{module.versions[_OPERATOR]}"
    command = [Go.find().command, "mod", "download", "-json", wanted]
    done = subprocess.run(command, cwd=module.folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip() or json.loads(done.stdout).get("Error", "")
        raise MissingPrerequisite(
            f"the Go module {wanted} cannot be downloaded ({said}); see to it that this machine reaches its module "
            "proxy (`go env GOPROXY` names it), then try again"
        )
    folder = Path(json.loads(done.stdout)["Dir"])
    return [folder / _OPERATOR_CRDS.format(kind) for kind in _OPERATOR_KINDS]


def _digest(files: Sequence[Path], program: Path) -> str:
    about = program.stat()
    digest = hashlib.sha256(f"{program} {about.st_size} {about.st_mtime_ns}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
