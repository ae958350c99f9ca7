"""Errors of the Workspace controller.

SettingsError      config.yaml or the environment is wrong; the process ends with this sentence
"""


class SettingsError(Exception):
    """One sentence: which setting, its value, what it should be."""
