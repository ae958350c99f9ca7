from kaito_hooks.workspace.decision.actions import Note
from kaito_hooks.workspace.status.conditions import told_together


def test_good_news_of_one_moment_is_one_event_under_the_last_reason() -> None:
    notes = [Note("Normal", "Created", "created Service/phi"), Note("Normal", "workspaceReady", "workspace is ready")]
    assert told_together(notes) == [Note("Normal", "workspaceReady", "created Service/phi; workspace is ready")]


def test_every_warning_is_an_event_of_its_own() -> None:
    warnings = [Note("Warning", "machineFailedCreation", "no quota"), Note("Warning", "workspaceFailed", "no quota")]
    good = Note("Normal", "CreatedMachine", "created Machine ws1")
    assert told_together([warnings[0], good, warnings[1]]) == [good, *warnings]


def test_what_is_told_alone_keeps_its_reason() -> None:
    created, checked = (
        Note("Normal", "Created", "created Job/phi"),
        Note("Normal", "TuningChecked", "24 rows", alone=True),
    )
    ready = Note("Normal", "workspaceReady", "workspace is ready")
    joined = Note("Normal", "workspaceReady", "created Job/phi; workspace is ready")
    assert told_together([created, checked, ready]) == [joined, checked]


def test_no_news_is_no_event() -> None:
    assert told_together([]) == []
