"""The Container Device Interface: files in which drivers say what a container with a device of theirs needs."""
