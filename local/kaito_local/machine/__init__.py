"""This machine: folders, processes, namespaces, addresses, certificates, and the Go programs that are built on it."""
