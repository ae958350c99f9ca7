"""Errors of the Workspace controller's own configuration."""


class SettingsError(Exception):
    """config.yaml or the environment is wrong. One sentence: which setting, its value, what it should be."""
