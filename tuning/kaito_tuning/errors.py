"""Errors of the tuning job.

TuningError
├── ConfigInvalid    training_config.yaml asks for something that does not exist or does not fit; never retried
├── DatasetInvalid   the data cannot be trained on; never retried
├── ModelInvalid     the base model's folder cannot be loaded; never retried
├── OutOfMemory      the device ran out of memory and halving the micro-batch did not help; never retried
├── NonFiniteLoss    the loss became NaN or infinite repeatedly; never retried
└── DiskFull         a checkpoint or the result could not be written; retried by the kubelet

``reason`` is the word that the Workspace's conditions show; ``permanent`` errors end the process with exit code 2.
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
    """The data set has no usable rows, or a row cannot be read."""


class ModelInvalid(TuningError):
    """The base model's folder cannot be loaded."""


class OutOfMemory(TuningError):
    """The accelerator's memory does not suffice."""


class NonFiniteLoss(TuningError):
    """The loss is NaN or infinite."""


class DiskFull(TuningError):
    """A file could not be written."""

    permanent = False
