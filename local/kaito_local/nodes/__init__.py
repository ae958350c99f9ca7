"""Real nodes in Linux namespaces, and the namespaces of their cluster, in which they are nested."""
