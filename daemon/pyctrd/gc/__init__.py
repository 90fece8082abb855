"""Garbage collection: when, and in which order."""
