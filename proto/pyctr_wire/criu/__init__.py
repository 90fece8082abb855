"""CRIU's request protocol: the part of it that we speak."""
