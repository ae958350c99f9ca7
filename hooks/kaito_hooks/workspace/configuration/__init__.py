"""What the chart configures: ``settings.py`` has the types, ``file.py`` reads config.yaml and the environment.

Imports no other room; every room may import it, but ``file.py`` is for the process alone.
"""
