"""Memory and time of reading a large data set: `python tests/benchmarks/tuning_data.py --gib 3`.

A Parquet file of that size (conversations of random letters, which hardly compress) is written below --folder, which
needs three times as much disk, and is loaded as the training does, in a process of its own, then read once more in a
shuffled order as the tokenisation does. Prints one JSON object: peak memory in GiB (all resident pages, and those that
are not mapped files, which the kernel can drop), seconds, MiB/s.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

GIB = 1 << 30
ROW_BYTES = 2000
ROWS_AT_ONCE = 5000


def write(path: Path, size: int) -> int:
    """A Parquet file of at least ``size`` bytes; returns its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema({"id": pa.int64(), "messages": pa.list_(message)})
    rows = 0
    with pq.ParquetWriter(path, schema, compression="snappy") as writer:
        while path.stat().st_size < size:
            texts = [os.urandom(ROW_BYTES // 2).hex() for _ in range(ROWS_AT_ONCE)]
            batch = [
                {
                    "id": rows + number,
                    "messages": [
                        {"role": "user", "content": text[: ROW_BYTES // 4]},
                        {"role": "assistant", "content": text[ROW_BYTES // 4 :]},
                    ],
                }
                for number, text in enumerate(texts)
            ]
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
            rows += len(texts)
    return rows


class Peak(threading.Thread):
    """Watches this process's memory, every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.resident = self.anonymous = 0

    def run(self) -> None:
        while True:
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.resident = max(self.resident, int(status["VmHWM"].split()[0]) * 1024)
            self.anonymous = max(self.anonymous, int(status["RssAnon"].split()[0]) * 1024)
            time.sleep(0.02)


def load(folder: Path) -> dict[str, Any]:
    """Loads the data set in ``folder`` and reads it once; what it took."""
    from kaito_tuning import data
    from kaito_tuning.config import DatasetConfig

    peak = Peak()
    peak.start()
    size = sum(path.stat().st_size for path in folder.iterdir())
    began = time.monotonic()
    found = data.load(folder, DatasetConfig(train_test_split=0.99), cache=folder.parent / "cache")
    loaded = time.monotonic() - began
    loaded_resident = peak.resident
    for start in range(0, len(found.training), 1000):
        found.training[start : start + 1000]
    read = time.monotonic() - began - loaded
    time.sleep(0.1)
    return {
        "rows": len(found.training) + len(found.evaluation or ()),
        "fileGiB": round(size / GIB, 3),
        "loadSeconds": round(loaded, 1),
        "loadMiBPerSecond": round(size / (1 << 20) / loaded, 1),
        "readSeconds": round(read, 1),
        "peakResidentGiBWhileLoading": round(loaded_resident / GIB, 3),
        "peakResidentGiB": round(peak.resident / GIB, 3),
        "peakAnonymousGiB": round(peak.anonymous / GIB, 3),
    }


def measure(gib: float, folder: Path) -> dict[str, Any]:
    """Writes the file, loads it in a process of its own, removes both."""
    scratch = Path(tempfile.mkdtemp(prefix="kaito-benchmark-", dir=folder))
    try:
        (scratch / "data").mkdir()
        write(scratch / "data" / "train.parquet", int(gib * GIB))
        command = [sys.executable, __file__, "--load", str(scratch / "data")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        measured: dict[str, Any] = json.loads(done.stdout)
        return measured
    finally:
        shutil.rmtree(scratch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=0.3, help="size of the file")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where it is written")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    print(json.dumps(load(options.load) if options.load else measure(options.gib, options.folder)))


if __name__ == "__main__":
    main()
