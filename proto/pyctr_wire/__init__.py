"""Whatever two of our programs must agree on: messages, frames, error classes, OCI documents."""

from pyctr_wire import lean_protobuf

lean_protobuf.defer()
