"""Programs that stand in for what needs GPUs or money."""
