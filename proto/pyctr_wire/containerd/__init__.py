"""containerd's API, generated from the .proto files here."""
