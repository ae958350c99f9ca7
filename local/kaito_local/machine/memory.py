"""How much memory this machine has to spare."""

from __future__ import annotations

from pathlib import Path


def available_gib(meminfo: Path = Path("/proc/meminfo")) -> float:
    """What programs can be given without swapping (proc_meminfo(5), MemAvailable)."""
    line = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:"))
    return int(line.split()[1]) / 2**20
