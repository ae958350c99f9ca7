"""The Workspace controller: ``observe`` a Workspace and its world, ``plan`` (pure), ``execute``.

``plan.py`` puts the decisions together; each concern (rules, nodes, claims, workload, status ...) is one pure module of
its own. Only ``observe.py`` reads and only ``execute.py`` writes. Run it as ``python -m kaito_hooks.workspace``.
"""
