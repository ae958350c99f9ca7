"""`kaito check-data`: the check that a tuning Workspace runs before it buys a GPU, for files on this machine.

The check is the tuning image's own program, run as a child process; what it needs is the extra `kaito[check]`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from kaito_local.cluster.local_cluster import LocalCluster
from kaito_local.errors import CommandError, MissingPrerequisite, UsageError
from kaito_local.machine.folders import ROOT

_PACKAGES = ("datasets", "jinja2", "pyarrow", "tokenizers", "transformers", "yaml")
_CONFIG_KEY = "training_config.yaml"
# A family's name in the catalogue where it is not the model_type of its config.json.
_MODEL_TYPES = {"llama2": "llama"}
_TRAINED_ON = {
    "messages": "the assistant's answers are learned",
    "prompt-completion": "the completions are learned",
    "text": "everything is learned",
}


@dataclass(frozen=True, slots=True)
class Preset:
    """What the check needs to know of a preset; ``context`` in tokens."""

    name: str
    model_type: str
    context: int
    tunable: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="the data set: files, or folders of files")
    parser.add_argument("--preset", required=True, metavar="NAME", help="which model is to be tuned")
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="training_config.yaml or its ConfigMap (default: that of qlora)"
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="the model's tokenizer; without it no tokens are counted"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(options: argparse.Namespace, _: LocalCluster, __: list[str]) -> int:
    """Check; exit code 0: can be trained, 2: refused. Raises LocalError with one sentence when it cannot be checked."""
    chosen = preset(options.preset)
    for file in options.files:
        # What is meant by standard input or an address, the check tells.
        if file != "-" and "://" not in file and not os.path.exists(file):
            raise UsageError(f"there is no file {file}")
    if options.tokenizer is not None and not options.tokenizer.is_dir():
        raise UsageError(f"--tokenizer {options.tokenizer} is no folder")
    require_packages()
    with tempfile.TemporaryDirectory(prefix="kaito-check-data-") as scratch:
        config, method = configuration(options.config, Path(scratch))
        code, report = check(options.files, chosen, config=config, method=method, tokenizer=options.tokenizer)
    print(json.dumps(report, ensure_ascii=False) if options.json else "\n".join(lines(report)))
    return code


def check(
    files: list[str], chosen: Preset, *, config: Path, method: str, tokenizer: Path | None
) -> tuple[int, dict[str, Any]]:
    """The exit code and the report of the check in a process of its own. Raises CommandError."""
    done = subprocess.run(
        [sys.executable, "-m", "kaito_tuning.check", *files],
        env=os.environ
        | {
            "YAML_FILE_PATH": str(config),
            "MODEL_PATH": str(tokenizer or ""),
            "MODEL_TYPE": chosen.model_type,
            "CONTEXT_LENGTH": str(chosen.context),
            "METHOD": method,
            "TERMINATION_LOG": os.devnull,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        report = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise CommandError(f"the check ended with exit code {done.returncode}: {last}") from None
    if done.returncode not in (0, 2):
        raise CommandError("; ".join(report["problems"]))
    return done.returncode, report


def preset(name: str) -> Preset:
    """The preset of that name in the catalogue. Raises UsageError, which names the nearest one that can be tuned."""
    presets = {found.name: found for found in _presets()}
    tunable = [found.name for found in presets.values() if found.tunable]
    if name in presets and presets[name].tunable:
        return presets[name]
    near = difflib.get_close_matches(name.lower(), tunable, n=1, cutoff=0.4)
    meant = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(tunable)}"
    raise UsageError(f"the preset {name} {'cannot be tuned' if name in presets else 'does not exist'}{meant}")


def configuration(given: Path | None, scratch: Path) -> tuple[Path, str]:
    """The training_config.yaml to check, taken out of a ConfigMap if need be, and the method where it is known."""
    if given is None:
        return ROOT / "presets" / "tuning" / "qlora.yaml", "qlora"
    try:
        documents = list(yaml.safe_load_all(given.read_text(encoding="utf-8")))
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--config {given} cannot be read: {error}") from None
    except yaml.YAMLError:
        return given, ""  # the check says what is wrong with it
    for document in documents:
        if isinstance(document, Mapping) and document.get("kind") == "ConfigMap":
            data = document.get("data")
            text = data.get(_CONFIG_KEY) if isinstance(data, Mapping) else None
            if not isinstance(text, str):
                raise UsageError(f"--config {given}: the ConfigMap has no key {_CONFIG_KEY}")
            (scratch / _CONFIG_KEY).write_text(text, encoding="utf-8")
            return scratch / _CONFIG_KEY, ""
    return given, ""


def require_packages() -> None:
    """Raises MissingPrerequisite without what the check imports."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingPrerequisite(
            f"kaito check-data needs Python packages that are not installed ({', '.join(missing)}); "
            "they are the extra kaito[check]; run: pip install -c constraints.txt -e '.[local,check]'"
        )


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report for people."""
    rows, tokens = report["rows"], report["tokens"]
    if report["form"]:
        yield f"form      {report['form']}: {_TRAINED_ON[report['form']]}"
        yield f"files     {', '.join(report['files'])}"
        parts = [f"{rows['training']:,} to train on", f"{rows['evaluation']:,} to evaluate on"]
        yield "rows      " + ", ".join(parts + ([f"{rows['skipped']:,} left out"] if rows["skipped"] else []))
    if tokens:
        longest = (
            f"half of the rows up to {tokens['p50']:,}, 95 % up to {tokens['p95']:,}, the longest {tokens['max']:,}"
        )
        yield f"tokens    {longest}; {tokens['cutShare']:.1%} are cut at max_length {report['maxLength']:,}"
        yield f"training  {report['tokensPerEpoch']:,} tokens an epoch, about {report['estimatedSteps']:,} steps in all"
    elif report["form"]:
        yield "tokens    not counted; name the model's tokenizer with --tokenizer"
    yield from (f"warning   {sentence}" for sentence in report["warnings"])
    yield from (f"problem   {sentence}" for sentence in report["problems"])
    yield "refused: it would not be trained" if report["problems"] else "can be trained"


def _presets() -> Iterator[Preset]:
    for file in sorted((ROOT / "presets" / "models").glob("*.yaml")):
        for name, fields in yaml.safe_load(file.read_text(encoding="utf-8")).items():
            family = str(fields.get("family", ""))
            model_type = _MODEL_TYPES.get(family, family)
            yield Preset(name, model_type, int(fields.get("contextLength", 0)), tunable=bool(fields.get("tuning")))
