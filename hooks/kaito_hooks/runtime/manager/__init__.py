"""The process of a controller: leader election, probes and metrics over HTTP, periodic work, start and orderly end.

Modelled on controller-runtime's manager; controllers take it from ``kaito_hooks.runtime``.
"""
