"""Errors of the Workspace controller.

SettingsError      config.yaml or the environment is wrong; the process ends with this sentence
ConfigInvalid      a user's tuning configuration cannot be read; the Workspace says so
"""


class SettingsError(Exception):
    """One sentence: which setting, its value, what it should be."""


class ConfigInvalid(Exception):
    """One sentence about the document: where, what, what to do instead."""
