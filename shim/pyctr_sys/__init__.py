"""The kernel, one man page at a time."""
