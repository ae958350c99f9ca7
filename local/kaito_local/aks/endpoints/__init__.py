"""What listens: ARM and the token endpoint over TLS, and the control port for tests and `kaito aks`.

It turns requests into verbs of ``pools/`` and their results into answers.
"""
