from __future__ import annotations

import io
import json
import logging
import subprocess
import sys

import pytest

from kaito_hooks.runtime import configure_logging
from kaito_hooks.runtime.logs import JsonFormatter, log_fields


@pytest.fixture
def lines() -> list[dict[str, object]]:
    return []


@pytest.fixture
def logger(lines: list[dict[str, object]]) -> logging.Logger:
    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    logger = logging.Logger("kaito.test")
    logger.addHandler(Collect())
    return logger


def test_a_line_is_json_with_its_extra_fields(logger: logging.Logger, lines: list[dict[str, object]]) -> None:
    logger.warning("bought %d nodes", 2, extra={"instance_type": "Standard_NC6s_v3"})
    (line,) = lines
    assert line["msg"] == "bought 2 nodes"
    assert line["level"] == "warning"
    assert line["logger"] == "kaito.test"
    assert line["instance_type"] == "Standard_NC6s_v3"
    assert str(line["ts"]).endswith("Z")


def test_a_line_within_a_reconcile_names_the_object(logger: logging.Logger, lines: list[dict[str, object]]) -> None:
    with log_fields(controller="workspace", namespace="ns", name="phi"):
        logger.info("inside")
    logger.info("outside")
    assert lines[0]["name"] == "phi"
    assert "controller" not in lines[1]


def test_an_exception_and_odd_values_stay_on_one_line(logger: logging.Logger, lines: list[dict[str, object]]) -> None:
    try:
        raise RuntimeError("first\nsecond")
    except RuntimeError:
        logger.exception("failed", extra={"odd": object()})
    assert "RuntimeError: first\nsecond" in str(lines[0]["error"])


def test_an_unknown_level_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'loud' is not a log level; use one of debug, info, warning, error"):
        configure_logging("loud", stream=io.StringIO())


def test_a_process_logs_to_stderr_from_its_level_on() -> None:
    code = (
        "import logging; from kaito_hooks.runtime import configure_logging; configure_logging('info');"
        "logging.getLogger('a').debug('hidden'); logging.getLogger('a').info('shown')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert [json.loads(line)["msg"] for line in done.stderr.splitlines()] == ["shown"]
