"""Bytes between a container and its clients: FIFOs, terminals, logs, attached clients."""
