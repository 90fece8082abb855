"""Nouns and rules: values without I/O, clock or protobuf, tested without a socket, a mount or root."""
