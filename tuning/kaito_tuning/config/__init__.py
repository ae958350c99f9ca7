"""What is asked for: ``training_config.yaml``, its fields and their bounds, and which modules of a model it adapts.

``load`` reads and checks the file. ``targets`` says what it comes to for one model, ``expressible`` what of it the
model server can serve. No torch; peft and TRL are only asked for their fields, where they are installed.
"""

from kaito_tuning.config.fields import KnownFields
from kaito_tuning.config.file import load, output_directory, parse
from kaito_tuning.config.sections import MOUNT, DatasetConfig, TuningConfig

__all__ = ["MOUNT", "DatasetConfig", "KnownFields", "TuningConfig", "load", "output_directory", "parse"]
