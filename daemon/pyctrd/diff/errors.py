"""What can be wrong with a layer. Raised in the worker; the daemon turns them into status codes."""


class ArchiveError(Exception):
    """The archive, or its compression, is damaged, or asks for what no layer may have."""


class TooLarge(Exception):
    """The layer is larger than the limits allow."""
