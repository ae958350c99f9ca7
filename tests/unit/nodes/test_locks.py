"""Locked files that leave nothing behind."""

from __future__ import annotations

import threading
from pathlib import Path

from kaito_local.machine.locks import file_lock


def test_many_threads_hold_it_one_after_another_and_no_file_stays(tmp_path: Path) -> None:
    lock = tmp_path / "folder" / ".lock"
    inside: list[int] = []
    overlaps: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            with file_lock(lock):
                inside.append(number)
                if len(inside) > 1:
                    overlaps.append(number)
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == []
    assert list((tmp_path / "folder").iterdir()) == []


def test_its_folder_may_be_removed_while_it_is_held(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with file_lock(folder / ".lock"):
        (folder / ".lock").unlink()
        folder.rmdir()
    assert not folder.exists()
