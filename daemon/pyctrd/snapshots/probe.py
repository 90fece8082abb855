"""Whether this kernel lets root of a user namespace mount an overlay: it does from 5.11 on, if the file system can."""

import shutil
import tempfile
from pathlib import Path

from pyctr_sys.mount import MNT_DETACH, mount, umount2


def why_not(directory: Path) -> str | None:
    """Return what is wrong with an overlay of directories below `directory`, None if nothing is."""
    scratch = Path(tempfile.mkdtemp(prefix=".overlay-", dir=directory))
    try:
        for name in ("lower", "upper", "work", "merged"):
            (scratch / name).mkdir()
        names = f"lowerdir={scratch}/lower,upperdir={scratch}/upper,workdir={scratch}/work,userxattr"
        mount("overlay", str(scratch / "merged"), "overlay", 0, names)
        umount2(str(scratch / "merged"), MNT_DETACH)
    except OSError as error:
        return str(error)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return None
