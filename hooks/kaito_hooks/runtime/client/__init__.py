"""What talks to the API server: verbs, watches, informers with their caches, Events. Modelled on client-go.

Controllers take it from ``kaito_hooks.runtime``.
"""
