"""Sockets and what every call passes: listening, dispatch, errors."""
