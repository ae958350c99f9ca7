"""The phases of a claim: finalizer, launch, registration, initialization, liveness, health, termination, collection.

Each is one function over a Claim and the ``Environment`` of injected clock, cloud and client; beside them are the parts
that they share: drain (pure) and eviction, volumes, deletion, replacement, polling. lifecycle.py puts the phases of one
claim in order. Nothing here imports a cloud: cloud.py is all that they know of it.
"""
