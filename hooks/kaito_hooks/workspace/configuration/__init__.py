"""What the chart configures: ``settings.py`` has the types, ``file.py`` reads config.yaml and the environment.

``errors.py`` names what cannot be read, a user's tuning configuration too. Imports no other room; every room may import
it, but ``file.py`` is for the process alone.
"""
