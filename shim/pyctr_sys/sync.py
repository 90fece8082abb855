"""Making sure of the disk: syncfs(2)."""

from pyctr_sys.calls import check, libc


def syncfs(fd: int) -> None:
    """Write everything of the file system that `fd` lies on to its disk. Raises OSError: EIO, ENOSPC."""
    check(libc.syncfs(fd), "syncfs")
