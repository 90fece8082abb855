"""The Kubernetes container runtime interface, generated from the .proto files here."""
