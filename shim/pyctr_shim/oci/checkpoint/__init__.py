"""Checkpoints: saving a container's processes with CRIU, and making a container of what was saved.

Nothing here is loaded by a shim: only by the child of it, or the command, that saves or restores.
"""
