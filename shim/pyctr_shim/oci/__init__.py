"""The OCI runtime: a container's processes, from a bundle to their exit. Knows nothing of ttrpc or the shim."""
