"""The detached parent of one container's processes."""
