"""OCI JSON documents as typed values."""
