"""Errors of the tuning job.

TuningError
├── ConfigInvalid    training_config.yaml asks for something that does not exist or does not fit; never retried
├── DatasetInvalid   the data cannot be trained on; never retried
├── ModelInvalid     the base model's folder cannot be loaded; never retried
├── OutOfMemory      the memory did not suffice and halving the micro-batch did not help; never retried
├── NonFiniteLoss    the loss or its gradient became NaN or infinite repeatedly; never retried
├── TrainingFailed   a device or a library failed amid the training; retried by the kubelet
└── DiskFull         a checkpoint or the result could not be written; retried by the kubelet

``reason`` is the word that the Workspace's conditions show; ``permanent`` errors end the process with exit code 2, and
so does the third in a row of any other.
"""

from __future__ import annotations


class TuningError(Exception):
    """Anything that ends the job; the text is one sentence for the user."""

    permanent = True

    @property
    def reason(self) -> str:
        """The condition reason, as in docs of the job's failure reasons."""
        return type(self).__name__


class ConfigInvalid(TuningError):
    """training_config.yaml names an unknown field or a value that cannot be used."""


class DatasetInvalid(TuningError):
    """The data set has no usable rows, or a row cannot be read; ``rows`` says of the first bad ones what is wrong."""

    def __init__(self, sentence: str, *, rows: tuple[str, ...] = ()) -> None:
        super().__init__(sentence)
        self.rows = rows


class ModelInvalid(TuningError):
    """The base model's folder cannot be loaded."""


class OutOfMemory(TuningError):
    """The memory of the accelerator, or of the node, does not suffice.

    ``rows``: what was in work, such as "4 rows of 2,048 tokens"; empty when memory ran out before.
    """

    def __init__(self, message: str, *, rows: str = "") -> None:
        super().__init__(message)
        self.rows = rows


class NonFiniteLoss(TuningError):
    """The loss or its gradient is NaN or infinite."""


class TrainingFailed(TuningError):
    """A device or a library failed while the training was under way."""

    permanent = False


class DiskFull(TuningError):
    """A file could not be written."""

    permanent = False
