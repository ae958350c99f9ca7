"""The data set: which files it is, their rows in one of three forms, as tables on disk, and their lengths in tokens.

Needs pyarrow and datasets, no torch: the check without a GPU and the training read data with the same code.
"""

from kaito_tuning.data.forms import Form
from kaito_tuning.data.rows import Refusal
from kaito_tuning.data.table import Data, load

__all__ = ["Data", "Form", "Refusal", "load"]
