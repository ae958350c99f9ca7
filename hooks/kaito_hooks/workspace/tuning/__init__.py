"""Tuning Workspaces: ``decide`` puts together the ConfigMap's rules, the Job, its state and its progress.

Everything here is pure. ``plan.py`` and ``observe.py`` call it, no other room does.
"""
