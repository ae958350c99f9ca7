"""docs/architecture.md says which rooms there are and what each imports, and it is true."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGES = {"kaito_hooks": "hooks", "kaito_serving": "serving", "kaito_tuning": "tuning", "kaito_local": "local"}

Rooms = Mapping[str, frozenset[str]]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def documented(package: str) -> Rooms:
    """Room -> what the page says that it imports. The row of a package itself has the package's name."""
    section = PAGE.partition(f"### `{package}`\n")[2].partition("\n### ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    return {name(cells[0]): frozenset(re.findall(r"`([^`]+)`", cells[2])) for cells in rows}


def name(cell: str) -> str:
    return cell.strip().strip("`")


def imported(package: str, graph: grimp.ImportGraph) -> Rooms:
    """Room -> the other rooms whose modules its own modules import."""
    folders = {package, *(module for module in graph.modules if (path(module) / "__init__.py").is_file())}

    def room(module: str) -> str:
        folder = module if module in folders else module.rpartition(".")[0]
        return folder.removeprefix(f"{package}.")

    own = {module for module in graph.modules if module.partition(".")[0] == package}
    rooms: dict[str, set[str]] = {room(module): set() for module in own}
    for module in own:
        rooms[room(module)] |= {room(found) for found in graph.find_modules_directly_imported_by(module)}
    return {found: frozenset(others - {found}) for found, others in rooms.items()}


def path(module: str) -> Path:
    return ROOT / PACKAGES[module.partition(".")[0]] / module.replace(".", "/")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_names_every_room_and_every_import_between_rooms(package: str, graph: grimp.ImportGraph) -> None:
    said, found = documented(package), imported(package, graph)
    # A package that only holds others has no row.
    needed = {room: others for room, others in found.items() if room != package or others or len(found) == 1}
    needed |= {room: found[room] for room in said.keys() & found.keys()}
    assert {room: sorted(others) for room, others in said.items()} == {
        room: sorted(others) for room, others in needed.items()
    }


def test_no_package_of_ours_imports_another(graph: grimp.ImportGraph) -> None:
    between = {
        (module, found)
        for module in graph.modules
        for found in graph.find_modules_directly_imported_by(module)
        if module.partition(".")[0] != found.partition(".")[0]
    }
    assert not between


def test_every_module_that_the_page_names_exists() -> None:
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)*/[a-z_]+\.py)`", PAGE)
    assert named
    missing = [file for file in named if not ((ROOT / file).exists() or (ROOT / "hooks/kaito_hooks" / file).exists())]
    assert not missing
