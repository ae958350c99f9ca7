"""The objects that a Workspace owns: workload, Services, NetworkPolicy; what they should be and what to do about it.

``inference`` puts the children of a Workspace that serves together, ``upkeep`` compares them with those that exist,
``drift`` and ``deletion`` say when they stay and when they go. Pure; ``tuning/`` and the modules at the top import it.
"""
