"""Snapshots: layers of file systems, and the mounts that show them."""
