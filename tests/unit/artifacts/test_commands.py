"""How a command ends: its exit code and its termination message."""

from __future__ import annotations

from pathlib import Path

import pytest

from kaito_hooks.artifacts.__main__ import main


@pytest.fixture
def termination_log(tmp_path: Path) -> Path:
    path = tmp_path / "termination-log"
    path.touch()
    return path


def test_an_error_that_nobody_expected_is_told_by_its_name_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, termination_log: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it says may be secret; the log has where it happened."""
    monkeypatch.setenv("KAITO_REGISTRIES", '{"caBundle": ["hunter2"]}')
    arguments = ["pull", "--image", "a/b", "--destination", str(tmp_path / "d"), "--marks", str(tmp_path / "m")]
    assert main(arguments, termination_log=termination_log) == 1
    assert termination_log.read_text() == "an unexpected TypeError ended this step; its log says where"
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("token", [b"", b"a\nb", b"a b", b"\xff"])
def test_a_token_that_cannot_be_sent_is_told_without_showing_it(
    tmp_path: Path, termination_log: Path, token: bytes
) -> None:
    secret = tmp_path / "hub-token" / "token"
    secret.parent.mkdir()
    secret.write_bytes(token)
    arguments = ["weights", "--hugging-face", "org/model", "--revision", "0" * 40, "--token-file", str(secret)]
    more = ["--destination", str(tmp_path / "d"), "--marks", str(tmp_path / "m")]
    assert main([*arguments, *more], termination_log=termination_log) == 1
    told = f"the Secret mounted at {secret.parent} holds no token of one line in its key token"
    assert termination_log.read_text() == told
