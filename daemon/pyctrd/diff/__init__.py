"""Layers: unpacking them into mounts, and making them out of the difference of two mounts."""
