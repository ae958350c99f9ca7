"""Prometheus' exposition text, cut and joined by the names of series."""

from __future__ import annotations


def only(text: str, prefix: str) -> str:
    """The lines of all families whose names begin with `prefix`."""
    return "".join(f"{line}\n" for line in text.splitlines() if _name(line).startswith(prefix))


def _name(line: str) -> str:
    """The family's name in `# HELP name ...` and `# TYPE name ...`, the series' name in a sample."""
    words = line.split(maxsplit=3)
    if line.startswith("#"):
        return words[2] if len(words) > 2 else ""
    return words[0].partition("{")[0] if words else ""
