"""The Workspace controller: ``observe`` a Workspace and its world, ``plan`` (pure), ``execute``.

``plan.py`` puts the decisions of the rooms together, and ``outcomes.py`` makes the status of them; the rooms are pure
but for ``status/``'s questions to Pods, and import nothing of this folder's modules. Only ``observe.py`` reads the API
server and only ``execute.py`` writes, its actions with ``writer.py``. Run it as ``python -m kaito_hooks.workspace``;
nothing imports it.
"""
