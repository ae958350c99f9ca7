"""How far the job is, for those who ask: the state as a file, on a page, as JSON and as Prometheus series.

The training fills a ``History`` and reports a ``Progress``; nothing here can end it.
"""

from kaito_tuning.progress.file import ProgressFile, termination_message
from kaito_tuning.progress.history import History
from kaito_tuning.progress.state import Progress

__all__ = ["History", "Progress", "ProgressFile", "termination_message"]
