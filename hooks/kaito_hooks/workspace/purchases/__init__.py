"""What a Workspace buys: ``claims`` has their names, what they ask for and what is to be said of those not ready.

``alternatives`` names other instance types that would do, ``history`` says when a slot may buy again. Pure; whether
anything is bought is decided in ``supply/``.
"""
