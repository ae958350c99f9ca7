"""What is left of a training: the adapter's files, its report, model card and lineage."""

from kaito_tuning.export.adapter import COMPLETED, complete, export, is_complete
from kaito_tuning.export.report import Origin

__all__ = ["COMPLETED", "Origin", "complete", "export", "is_complete"]
