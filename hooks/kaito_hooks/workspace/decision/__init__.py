"""The data of a decision: the ``Snapshot`` that it rests on, the ``Revision`` of a Workspace, the actions asked for.

``observe.py`` makes snapshots, ``execute.py`` carries out actions; every room that decides, from ``supply/`` to
``tuning/``, is made of functions from the one to the other.
"""
