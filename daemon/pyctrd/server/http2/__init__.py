"""gRPC over HTTP/2 on the event loop, as far as a server on a local socket needs it."""
