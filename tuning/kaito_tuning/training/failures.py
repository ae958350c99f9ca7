"""What a library's error means: one of the job's own, with a sentence that says what to change.

torch, bitsandbytes and safetensors report memory and disks that are full as RuntimeErrors of their own, so some are
known by their text. Before the first optimizer step nothing but the configuration, the data, the memory, the disk and
the device can be at fault; after it the configuration and the data have shown that they work.
"""

from __future__ import annotations

import errno
import re
from typing import Literal

from kaito_tuning import reading
from kaito_tuning.errors import (
    ConfigInvalid,
    DatasetInvalid,
    DiskFull,
    OutOfMemory,
    TrainingFailed,
    TuningError,
)
from kaito_tuning.reading import chain

Memory = Literal["the GPU's memory", "the node's memory"]

_DEVICE_MEMORY = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
    r"|NCCL error.*out of memory",
    re.IGNORECASE,
)
_HOST_MEMORY = re.compile(r"DefaultCPUAllocator: (can't|not enough)|cannot allocate memory|\bstd::bad_alloc\b", re.I)
_FULL_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_DISK_ERRORS = {*_FULL_ERRORS, errno.EIO}
_DISK = re.compile(
    r"inline_container|PytorchStreamWriter|No space left on device|File too large|Disk quota exceeded"
    r"|\(os error (28|27|122|30|5)\)",
    re.IGNORECASE,
)
_DEVICE = re.compile(
    r"\bCUDA\b|CUDNN|CUBLAS|\bNCCL\b|\bcuda\b|uncorrectable ECC|[Gg]loo|ProcessGroup|NVML|Connection \w+ by peer"
    r"|\bDist\w*Error\b"
)
_FULL = re.compile(r"No space left on device|Disk quota exceeded", re.IGNORECASE)
_DATA_MODULES = ("jinja2", "pyarrow", "datasets")
LONGEST = 400


def memory(error: BaseException) -> Memory | None:
    """Which memory ran out, if that is what the error, or one that it came from, means."""
    for cause in chain(error):
        text = str(cause)
        if type(cause).__name__ == "OutOfMemoryError" or _DEVICE_MEMORY.search(text):
            return "the GPU's memory"
        exhausted = isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)
        if exhausted or _HOST_MEMORY.search(text):
            return "the node's memory"
    return None


def explained(error: Exception, *, trained: bool, rows: str = "") -> TuningError:
    """The job's own error for one that a library raised.

    ``trained``: whether an optimizer step of this job was ever done. ``rows``: what was in work, such as "4 rows of
    2,048 tokens".
    """
    if isinstance(error, TuningError):
        return error
    if where := memory(error):
        return OutOfMemory(
            f"{where} does not suffice{f' for {rows}' if rows else ''}; lower TrainingArguments.max_length or "
            "per_device_train_batch_size, or choose a bigger instance type",
            rows=rows,
        )
    if full := disk(error):
        return full
    if isinstance(error, OSError) or _DEVICE.search(f"{type(error).__name__}: {error}") or trained:
        return TrainingFailed(f"the training failed: {sentence(error)}")
    if any(type(cause).__module__.partition(".")[0] in _DATA_MODULES for cause in chain(error)):
        return DatasetInvalid(f"a row cannot be prepared for this model: {sentence(error)}")
    return ConfigInvalid(f"training_config.yaml cannot be trained with: {sentence(error)}")


def unloadable(error: Exception) -> str:
    """Why a checkpoint cannot be loaded; "" where the error is not about the checkpoint.

    Memory, a disk that is full, a device and the other processes say nothing about it.
    """
    if isinstance(error, TuningError) or memory(error) or reading.passing(error):
        return ""
    for cause in chain(error):
        if _FULL.search(str(cause)) or _DEVICE.search(f"{type(cause).__name__}: {cause}"):
            return ""
    return sentence(error)


def unread(error: Exception) -> TuningError:
    """What to say of an error that came while a checkpoint was read, and is not about the checkpoint."""
    found = reading.passing(error)
    if found is None or memory(error) or found.errno in _FULL_ERRORS:
        return explained(error, trained=True)
    return TrainingFailed(f"a checkpoint cannot be read: {reading.told(found)}; it is kept: the next start tries again")


def disk(error: BaseException) -> DiskFull | None:
    """What to say if the error means that a file could not be written."""
    for cause in chain(error):
        if isinstance(cause, OSError) and cause.errno in _DISK_ERRORS:
            if cause.errno == errno.EIO:
                return DiskFull(f"a file could not be read or written: {reading.told(cause)}; the node's disk fails")
            return DiskFull(f"a file could not be written: {reading.told(cause)}; the node needs more disk space")
        if not isinstance(cause, OSError) and _DISK.search(str(cause)):
            return DiskFull(f"a checkpoint could not be written: {sentence(cause)}; the node needs more disk space")
    return None


def sentence(error: BaseException) -> str:
    """The error's text on one line, or its type where it has none, without the frames that CUDA adds to it."""
    text = " ".join(str(error).partition("\nException raised from")[0].split())
    if not text or isinstance(error, KeyError):
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
