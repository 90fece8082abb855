"""OCI runtimes that are programs of their own (runc, crun, ...), driven by their command line.

Loaded with the shim, where all shims share it: loaded later, it could be that of another version by then, which
would go on with what this one has written down.
"""
