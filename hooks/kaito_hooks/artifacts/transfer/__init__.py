"""Bounded HTTP: retries, resumed downloads, proxies, and which addresses a user's URL may lead to.

registry/ and hub.py fetch through it; download.py fetches training data from URLs.
"""
