"""Whatever two of our programs must agree on: messages, frames, error classes, OCI documents."""
