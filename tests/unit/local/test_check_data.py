"""`kaito check-data`: the check of a tuning Workspace's data on a laptop, its exit codes and its words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from tests.unit.tuning.checked import model_folder, write_rows
from tests.unit.tuning.test_tuning_config import changed

from kaito_local.commands.__main__ import main
from kaito_local.commands.check_data import configuration, lines, preset
from kaito_local.errors import UsageError

ROOT = Path(__file__).parents[3]
GOOD = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}
BAD = {"messages": [{"role": "user", "content": "Why?"}]}


def test_data_that_can_be_trained_on_gives_a_report_and_exit_code_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "data", *[GOOD] * 7) / "rows.jsonl"
    tokenizer = model_folder(tmp_path / "model", "phi")
    arguments = ["check-data", str(data), "--preset", "phi-2", "--tokenizer", str(tokenizer), "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["form"], report["files"], report["rows"]["training"]) == ("messages", ["rows.jsonl"], 7)
    assert report["problems"] == []
    assert report["tokens"]["p50"] > 0
    assert "can be trained" in [*lines(report)]


def test_data_that_cannot_be_trained_on_gives_sentences_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "data", GOOD, BAD)
    assert main(["check-data", str(data), "--preset", "phi-3-mini-4k-instruct"]) == 2
    said = capsys.readouterr().out
    assert "problem   row 2: the last message is the user's; it must be the assistant's" in said
    assert "refused" in said


def test_an_address_is_told_from_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", "https://example.com/rows.jsonl", "--preset", "phi-2"]) == 2
    assert "https://example.com/rows.jsonl is an address, not a file; download it" in capsys.readouterr().out


def test_the_configuration_may_lie_in_a_config_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "data", {"question": "Why?", "answer": "So."})
    named = changed("DatasetConfig", context_column="question", response_column="answer")
    document = {
        "kind": "ConfigMap",
        "metadata": {"name": "mine"},
        "data": {"training_config.yaml": yaml.safe_dump(named)},
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump_all([{"kind": "Workspace"}, document]))
    config = str(tmp_path / "mine.yaml")
    assert main(["check-data", str(data), "--preset", "phi-2", "--config", config, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["form"], report["tokens"]) == ("prompt-completion", None)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.jsonl", "--preset", "phi-2"], "there is no file none.jsonl"),
        (["x" * 300, "--preset", "phi-2"], f"there is no file {'x' * 300}"),
        ([".", "--preset", "phi3-mini-4k"], "phi3-mini-4k does not exist; did you mean phi-3-mini-4k-instruct?"),
        ([".", "--preset", "falcon-7b-instruct"], "falcon-7b-instruct cannot be tuned; did you mean falcon-7b?"),
        ([".", "--preset", "phi-2", "--tokenizer", "none"], "--tokenizer none is no folder"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-data", *arguments]) == 1
    assert sentence in capsys.readouterr().err


def test_a_config_map_without_the_key_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("kind: ConfigMap\ndata: {training.yaml: x}\n")
    with pytest.raises(UsageError, match=r"the ConfigMap has no key training_config.yaml"):
        configuration(tmp_path / "mine.yaml", tmp_path)


def test_every_preset_that_can_be_tuned_is_known_to_the_check() -> None:
    from kaito_tuning.config.targets import TARGETS

    tunable = [
        name
        for file in (ROOT / "presets" / "models").glob("*.yaml")
        for name, fields in yaml.safe_load(file.read_text()).items()
        if "tuning" in fields
    ]
    assert len(tunable) > 5
    assert {preset(name).model_type for name in tunable} <= TARGETS.keys()
    assert preset("mistral-7b").context == 32768


def test_without_the_packages_of_the_check_the_extra_is_named(tmp_path: Path) -> None:
    for installed in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not installed.name.startswith(("datasets", "pyarrow")):
            (tmp_path / installed.name).symlink_to(installed)
    (tmp_path / "kaito_local").symlink_to(ROOT / "local" / "kaito_local")
    command = [sys.executable, "-S", "-m", "kaito_local.commands", "check-data", str(tmp_path), "--preset", "phi-2"]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "(datasets, pyarrow); they are the extra kaito[check]" in done.stderr
    assert "Traceback" not in done.stderr
