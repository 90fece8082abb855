"""Content: blobs that digests name, shared by all namespaces, seen by those that have a row for them."""
