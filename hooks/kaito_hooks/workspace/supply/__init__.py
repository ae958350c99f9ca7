"""The nodes of a Workspace: ``decide`` says which it has, which to buy, which to give back, and what is still missing.

``slots`` and ``slot_table`` put claims and nodes together, ``nodes`` and ``node_facts`` read Nodes. Pure; ``plan.py``
and ``tuning/`` call ``decide``, and whoever meets a Node reads it with ``nodes``.
"""
