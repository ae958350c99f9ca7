"""The pages that people read, and what in them is a command, a manifest or values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
CHARTS = tuple(sorted((ROOT / "charts").glob("*/README.md")))
"""Pages that a chart's package holds too; their commands are typed in the chart's folder."""
PROGRAMS = ("kubectl", "helm", "kaito", "make", "az", "curl", "skopeo", "oras", "notation")
"""Programs whose name begins a command in running text."""
SHELL = ("sh", "bash", "console")

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_FILE_NAME = re.compile(r"^# ([\w.-]+\.(?:yaml|json))\n")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is that of its first line, ``file`` the name that its first line gives it."""

    line: int
    language: str
    text: str

    @property
    def file(self) -> str:
        found = _FILE_NAME.match(self.text)
        return found[1] if found else ""


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(text.count("\n", 0, m.start()) + 2, m[2], _dedented(m[3], m[1])) for m in _FENCE.finditer(text)]


def commands(page: Path) -> list[Block]:
    """All that is to be typed, in the order of the page: blocks of a shell, typed lines of others, and code in the text
    that begins with a program and says more than its name."""
    found = []
    for block in blocks(page):
        begins = not block.language and block.text.split(" ")[0] in PROGRAMS
        if block.language in SHELL or begins:
            found.append(block)
        elif not block.language:
            typed = [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]
            found += [Block(block.line, "sh", line + "\n") for line in typed]
    text = _FENCE.sub(lambda m: "\n" * m[0].count("\n"), page.read_text())
    for m in _INLINE.finditer(text):
        words = m[1].split()
        if len(words) > 1 and words[0].removeprefix(".venv/bin/") in PROGRAMS:
            found.append(Block(text.count("\n", 0, m.start()) + 1, "inline", " ".join(words) + "\n"))
    return sorted(found, key=lambda block: block.line)


def _dedented(text: str, indent: str) -> str:
    return "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))
