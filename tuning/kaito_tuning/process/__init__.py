"""The job as processes: one per GPU, stopped on request, continued by the next start from what an earlier one left.

Knows nothing of configuration, data or models.
"""
