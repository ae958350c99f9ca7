"""``python -m kaito_tuning.check [FILE...]``: the step ``check`` of a tuning Workspace, and of `kaito check-data`.

Environment: YAML_FILE_PATH, DATASET_FOLDER_PATH, MODEL_PATH (a folder with the model's small files; empty: no tokens
are counted), MODEL_TYPE (where MODEL_PATH has no config.json), METHOD, CONTEXT_LENGTH, SERVE_RESULT, CHECK_MAX_BYTES,
TERMINATION_LOG. Prints the report as JSON.
Exit codes: 0 can be trained, 1 may succeed when tried again, 2 never will.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kaito_tuning.check.examine import Settings, examine
from kaito_tuning.check.report import Report
from kaito_tuning.process import scratch

log = logging.getLogger("kaito_tuning.check")


def run(environment: Mapping[str, str], paths: Sequence[str], *, cache: Path) -> tuple[Report, int]:
    """The report and the exit code."""
    try:
        report = examine(Settings.read(environment, paths), cache=cache)
    except OSError as error:
        sentence = f"a file could not be read or written: {error.strerror or error} ({error.filename})"
        return Report(problems=(sentence,)), 1
    return report, 2 if report.problems else 0


def main(arguments: Sequence[str]) -> int:
    """The process: a scratch folder for tables, no network, the report on stdout and in the termination message."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with scratch.folder("kaito-check") as folder:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "datasets"), "HF_HOME": str(folder)}
        report, code = run(os.environ, arguments, cache=folder)
    for sentence in report.warnings:
        log.warning("%s", sentence)
    for sentence in report.problems:
        log.error("%s", sentence)
    termination = Path(os.environ.get("TERMINATION_LOG", "/dev/termination-log"))
    if "TERMINATION_LOG" in os.environ or termination.exists():
        termination.write_text(report.termination_message(), encoding="utf-8")
    sys.stdout.write(report.text() + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
