"""What a user may write into a Workspace: ``validate`` and ``changes`` are the rules, beside the admission policies.

With them is how what was written is understood: formats, misspelt names, Pod templates, tolerations, the engine. Pure;
it knows settings and the Catalog, no other state of the cluster, and every room above may import it.
"""
