"""Stands for a program that a page's commands call: runs it for real as far as an API server alone allows.

``python shim.py PROGRAM ARGUMENT...``. What would change the cluster is a server-side dry run; what waits for
something that only a whole cluster brings looks at its object; Azure's commands are checked against what they are known
to take. Each call is one line of JSON in ``$DOCUMENTS_LOG``: the command, and how it was run. An unknown one fails.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[2]

READS = {"get", "describe", "explain", "config", "version"}
WRITES = {"apply", "create", "delete", "annotate", "label", "scale", "cordon", "uncordon", "drain"}
TERMINAL = {"-it", "-i", "-t", "--rm", "--attach", "--quiet"}
FORWARDED = 60  # seconds

AZ = {
    "account set": {"--subscription"},
    "account show": {"--query", "--output"},
    "acr create": {"--resource-group", "--name", "--sku"},
    "acr login": {"--name", "--expose-token", "--query", "--output"},
    "acr token create": {"--registry", "--name", "--repository", "--output"},
    "acr token credential generate": {"--registry", "--name", "--password1", "--query", "--output"},
    "aks create": {"--resource-group", "--name", "--node-count", "--node-vm-size", "--enable-oidc-issuer",
                   "--enable-workload-identity", "--attach-acr", "--network-plugin", "--network-policy",
                   "--generate-ssh-keys"},
    "aks get-credentials": {"--resource-group", "--name"},
    "aks nodepool delete": {"--resource-group", "--cluster-name", "--name"},
    "aks nodepool list": {"--resource-group", "--cluster-name", "--query", "--output"},
    "aks nodepool scale": {"--resource-group", "--cluster-name", "--name", "--node-count"},
    "aks nodepool update": {"--resource-group", "--cluster-name", "--name", "--labels"},
    "aks show": {"--resource-group", "--name", "--query", "--output"},
    "aks update": {"--resource-group", "--name", "--enable-oidc-issuer", "--enable-workload-identity"},
    "group create": {"--name", "--location"},
    "group delete": {"--name"},
    "identity create": {"--resource-group", "--name", "--location"},
    "identity delete": {"--resource-group", "--name"},
    "identity federated-credential create": {"--resource-group", "--identity-name", "--name", "--issuer", "--subject",
                                             "--audience"},
    "identity show": {"--resource-group", "--name", "--query", "--output"},
    "login": set(),
    "provider register": {"--namespace", "--wait"},
    "role assignment create": {"--assignee-object-id", "--assignee-principal-type", "--role", "--scope"},
    "role assignment delete": {"--assignee", "--scope"},
    "storage account create": {"--resource-group", "--name", "--location", "--sku"},
    "storage blob generate-sas": {"--account-name", "--container-name", "--name", "--auth-mode", "--permissions",
                                  "--expiry", "--https-only", "--full-uri", "--output"},
    "storage blob upload": {"--account-name", "--container-name", "--name", "--file", "--auth-mode"},
    "storage container create": {"--account-name", "--name", "--auth-mode"},
    "vm list-skus": {"--location", "--size", "--all", "--output"},
    "vm list-usage": {"--location", "--query", "--output"},
}  # fmt: skip
"""Commands of Azure's CLI and the options that they take, by its reference; nothing here can run them."""
LOCAL = {
    "KAITO_REGISTRY": "registry.example.com",
    "KAITO_REGISTRY_USER": "user",
    "KAITO_REGISTRY_PASSWORD": "password",
    "KAITO_HOST_IP": "10.0.0.1",
}
"""What ``kaito env`` sets and pages use."""


def kubectl(arguments: list[str]) -> str:
    verb = next((word for word in arguments if word in READS | WRITES | {"wait", "run", "rollout", "logs"}), "")
    if "port-forward" in arguments:
        _run("kubectl", ["get", _object_of(arguments)])
        time.sleep(FORWARDED)
        return "its object is looked at; forwarded on the local cluster"
    if any(word.startswith("pod/") for word in arguments):
        return "a Pod that the page has made: on the local cluster"
    if verb in READS:
        if "--raw" in arguments:
            return "a Pod's answer: on the local cluster"
        _run("kubectl", [word for word in arguments if word not in ("-w", "--watch")])
        return "run"
    if arguments[:2] == ["create", "namespace"]:
        _run("kubectl", [*arguments, "--dry-run=client"])
        return "run as a dry run: the namespace may be there"
    if verb in WRITES:
        # What a page brings by hand, helm has brought here.
        forced = ["--force-conflicts"] if "--server-side" in arguments else []
        _run("kubectl", [*arguments, *forced, "--dry-run=server"])
        return "run as a server-side dry run"
    if verb == "run":
        end = arguments.index("--") if "--" in arguments else len(arguments)
        kept = [word for word in arguments[:end] if word not in TERMINAL]
        _run("kubectl", [*kept, "--dry-run=server", *arguments[end:]])
        return "run as a server-side dry run"
    if verb in ("wait", "rollout", "logs"):
        _run("kubectl", [*_namespace_of(arguments), "get", _object_of(arguments)])
        return "its object is looked at; waited for on the local cluster"
    raise SystemExit(f"nobody knows how to run kubectl {' '.join(arguments)}: teach tests/documents/shim.py")


def _object_of(arguments: list[str]) -> str:
    """KIND/NAME in the arguments, or a Deployment's that follows its kind."""
    if "deployment" in arguments:
        return f"deployment/{arguments[arguments.index('deployment') + 1]}"
    return next(word for word in arguments if "/" in word and not word.startswith("-"))


def _namespace_of(arguments: list[str]) -> list[str]:
    """--namespace NAME, if it is said; a command in a container has words of its own."""
    said = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return next(([*pair] for pair in pairwise(said) if pair[0] in ("--namespace", "-n")), [])


def helm(arguments: list[str]) -> str:
    match arguments[0]:
        case "install" | "upgrade" if any("onitor.enabled=true" in word for word in arguments):
            kept = [
                word for word in arguments[1:] if word not in ("--reuse-values", "--reset-then-reuse-values", "--wait")
            ]
            _run("helm", ["template", *kept])
            return "rendered: there is no Prometheus operator here"
        case "install" | "upgrade":
            _run("helm", [*arguments, "--dry-run=server"])
            return "run as a server-side dry run"
        case "uninstall":
            _run("helm", [*arguments, "--dry-run"])
            return "run as a dry run"
        case "test" | "rollback":
            _run("helm", ["status", *(word for word in arguments[1:])])
            return "its release is looked at; run on the local cluster, tests/demo/test_charts.py"
        case "template" | "list":
            _run("helm", arguments)
            return "run"
    raise SystemExit(f"nobody knows how to run helm {' '.join(arguments)}: teach tests/documents/shim.py")


def az(arguments: list[str]) -> str:
    words = arguments[: next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))]
    known = AZ.get(" ".join(words))
    if known is None:
        raise SystemExit(f"az {' '.join(words)} is in no table: add it with its options to tests/documents/shim.py")
    options = {word for word in arguments if word.startswith("--")}
    if not options <= known:
        raise SystemExit(f"az {' '.join(words)} does not take {', '.join(sorted(options - known))}")
    if empty := [option for option, value in pairwise(arguments) if value == ""]:
        raise SystemExit(f"az {' '.join(words)}: {', '.join(empty)} is empty: a variable is not set before")
    if "--query" in arguments:
        print("00000000-0000-0000-0000-000000000000")
    if "--full-uri" in arguments:
        print("https://mykaitodata.blob.core.windows.net/data/garden.jsonl?se=2026-12-01T00%3A00Z&sp=r&sig=0%3D")
    return "parsed: there is no Azure here"


def kaito(arguments: list[str]) -> str:
    from kaito_local.commands import line

    if "--help" not in arguments:
        line.parser().parse_args(arguments)
    else:
        _run("kaito", arguments)
    if arguments[0] == "env":
        print("\n".join(f"export {name}={value}" for name, value in LOCAL.items()))
    return "parsed; run on the local cluster"


def make(arguments: list[str]) -> str:
    command = ["/usr/bin/make", "--dry-run", "--directory", str(ROOT), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return "what make would do"


def curl(arguments: list[str]) -> str:
    if "data" not in "".join(arguments) and not any("://" in word for word in arguments):
        raise SystemExit(f"curl {' '.join(arguments)} asks nobody")
    print('{"id": "model", "content": "text"}')
    return "read; asked on the local cluster"


def python3(arguments: list[str]) -> str:
    match arguments[:2]:
        case ["-m", "http.server"]:
            time.sleep(FORWARDED)
            return "read; served on the local cluster"
        case ["-m", "pytest"]:
            if missing := [word for word in arguments[2:] if word.startswith("tests/") and not (ROOT / word).exists()]:
                raise SystemExit(f"there is no {', '.join(missing)}")
            return "its files are there"
        case ["-m", module, *_] if module.startswith(("kaito_", "tests.")):
            told = subprocess.run([sys.executable, "-m", module, "--help"], check=True, capture_output=True, cwd=ROOT)
            check_options(f"python -m {module}", arguments[2:], told.stdout.decode())
            return "its help knows its options"
    raise SystemExit(f"nobody knows how to run python {' '.join(arguments)}: teach tests/documents/shim.py")


def check_options(command: str, arguments: list[str], told: str) -> None:
    """Ends with a sentence if ``arguments`` hold an option that the help does not tell of."""
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", told))
    if unknown := [word for word in arguments if word.startswith("-") and word.partition("=")[0] not in known]:
        raise SystemExit(f"{command} does not take {', '.join(unknown)}")


def _signing(program: str, arguments: list[str]) -> str:
    """The subcommand's help knows the options: there is no registry with signed images here."""
    words = arguments[: next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))]
    path = os.environ[f"DOCUMENTS_{program.upper()}"]
    told = subprocess.run([path, *words, "--help"], check=True, capture_output=True, text=True).stdout
    if "[command]" in told.partition("Usage:")[2].strip().splitlines()[0]:
        raise SystemExit(f"{program} does not know {' '.join(words)}")
    check_options(f"{program} {words[0]}", arguments, told)
    return "its help knows its options"


def oras(arguments: list[str]) -> str:
    return _signing("oras", arguments)


def notation(arguments: list[str]) -> str:
    return _signing("notation", arguments)


def skopeo(arguments: list[str]) -> str:
    if arguments[0] != "login":
        raise SystemExit(f"nobody knows how to run skopeo {' '.join(arguments)}: teach tests/documents/shim.py")
    sys.stdin.read()
    return "read: there is no registry of Azure here"


def pip(arguments: list[str]) -> str:
    if not arguments[:1] == ["install"]:
        raise SystemExit(f"nobody knows how to run pip {' '.join(arguments)}: teach tests/documents/shim.py")
    return "read: what it installs is there; tests/unit/test_packaging.py"


SHIMS: dict[str, Callable[[list[str]], str]] = {
    "kubectl": kubectl, "helm": helm, "az": az, "kaito": kaito, "make": make, "curl": curl, "python3": python3,
    "python": python3, "skopeo": skopeo, "pip": pip, "oras": oras, "notation": notation,
}  # fmt: skip
REAL = ("realpath", "jq", "grep", "date", "sed", "seq", "mkdir", "cat", "sleep")
"""Programs of the machine that a page may use as they are."""


def _run(program: str, arguments: list[str]) -> None:
    path = os.environ.get(f"DOCUMENTS_{program.upper()}") or str(Path(sys.executable).parent / program)
    done = subprocess.run([path, *arguments], check=False)
    if done.returncode:
        raise SystemExit(f"{program} {' '.join(arguments)} ends with {done.returncode}")


def main() -> None:
    program, *arguments = sys.argv[1:]
    begun = {"program": program, "arguments": arguments}
    # Written before it is run, too: what is forwarded is ended by a signal.
    with open(os.environ["DOCUMENTS_LOG"], "a") as log:
        log.write(json.dumps({**begun, "how": ""}) + "\n")
    how = SHIMS[program](arguments)
    with open(os.environ["DOCUMENTS_LOG"], "a") as log:
        log.write(json.dumps({**begun, "how": how}) + "\n")


if __name__ == "__main__":
    main()
