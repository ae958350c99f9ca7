"""The training itself: from a base model's folder and a table of rows to the weights of an adapter.

``fit`` is the whole of it for the job. The modules that need torch or TRL at once (``trainer``, ``watcher``,
``health``, ``proof``) are imported when they are needed; the others are decisions that can be read and tested alone.
"""

from kaito_tuning.training.fit import fit
from kaito_tuning.training.job import TrainJob, TrainResult

__all__ = ["TrainJob", "TrainResult", "fit"]
