"""cffi declarations, compiled out of line into `_abi.py` (no compiler, no pycparser at run time)."""

from cffi import FFI

ffi = FFI()
ffi.cdef(
    """
    int unshare(int flags);
    int setns(int fd, int nstype);
    """
)
ffi.set_source("pyctr_sys._abi", None)
