"""Who a process in a container is: USER of an image and `--user`, looked up in the image's own files.

Everything here is said by the image, so it is read strictly: a number is never looked up as a name and
must fit a uid, files are capped, lines that do not parse do not count (CVE-2016-3697, CVE-2024-40635,
CVE-2026-46680, CVE-2026-47262).
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from pyctr_wire.errors import InvalidArgument
from pyctrd.core.values import dataclass

_MAX_ID: Final = (1 << 31) - 1
_MAX_FILE: Final = 1 << 20  # bytes of /etc/passwd or /etc/group
_MAX_LINE: Final = 64 << 10
_MAX_GROUPS: Final = 65536  # NGROUPS_MAX
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*\$?", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]+", re.ASCII)


class Files(Protocol):
    """The container's file system."""

    def read_file(self, path: str, limit: int) -> bytes | None:
        """Return a regular file's contents, None if there is none. Raises FailedPrecondition over `limit`."""


@dataclass(frozen=True, slots=True)
class User:
    """A resolved identity; `additional_gids` has `gid` first."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    gid: int
    members: tuple[str, ...]


def resolve_user(text: str, additional_groups: Sequence[str], files: Files) -> User:
    """Return the user that `text`, "USER[:GROUP]", names; "" is root.

    Raises InvalidArgument for what does not parse, is out of range, or is a name that is not there;
    FailedPrecondition for /etc/passwd or /etc/group that cannot be read within their limits.
    """
    user_text, colon, group_text = (text or "0").partition(":")
    if colon and not group_text:
        raise InvalidArgument(f"user {text!r}: the group after ':' is missing")
    account = _find_account(user_text or "0", files)
    groups = list(_groups(files))
    if group_text:
        gid = _group_id(group_text, groups)
        own: list[int] = []
    else:
        gid = account.gid
        own = [group.gid for group in groups if account.name and account.name in group.members]
    gids = [gid, *own, *(_group_id(group, groups) for group in additional_groups)]
    return User(account.uid, gid, tuple(dict.fromkeys(gids))[:_MAX_GROUPS], account.home)


def _find_account(text: str, files: Files) -> _Account:
    if _NUMBER.fullmatch(text):
        uid = _number("uid", text)
        found = next((account for account in _accounts(files) if account.uid == uid), None)
        return found or _Account("", uid, 0, "/")
    _check_name("user", text)
    for account in _accounts(files):
        if account.name == text:
            return account
    if text == "root":
        return _Account("root", 0, 0, "/root")
    raise InvalidArgument(f"unable to find user {text}: no matching entries in passwd file")


def _group_id(text: str, groups: Sequence[_Group]) -> int:
    if _NUMBER.fullmatch(text):
        return _number("gid", text)
    _check_name("group", text)
    for group in groups:
        if group.name == text:
            return group.gid
    raise InvalidArgument(f"unable to find group {text}: no matching entries in group file")


def _check_name(kind: str, text: str) -> None:
    if not _NAME.fullmatch(text):
        raise InvalidArgument(f"{text!r} is neither the name nor the number of a {kind}")


def _number(kind: str, text: str) -> int:
    if len(text) > 10 or int(text) > _MAX_ID:
        raise InvalidArgument(f"{kind} {text[:40]} is outside of 0 to {_MAX_ID}")
    return int(text)


def _rows(files: Files, path: str) -> Iterator[list[str]]:
    data = files.read_file(path, _MAX_FILE) or b""
    for line in data.split(b"\n"):
        if len(line) <= _MAX_LINE and line and not line.startswith(b"#"):
            yield line.decode(errors="replace").split(":")


def _is_id(text: str) -> bool:
    return bool(_NUMBER.fullmatch(text)) and len(text) <= 10 and int(text) <= _MAX_ID


def _accounts(files: Files) -> Iterator[_Account]:
    for fields in _rows(files, "/etc/passwd"):
        if len(fields) >= 6 and _NAME.fullmatch(fields[0]) and _is_id(fields[2]) and _is_id(fields[3]):
            home = fields[5] if fields[5].startswith("/") and fields[5].isprintable() else "/"
            yield _Account(fields[0], int(fields[2]), int(fields[3]), home)


def _groups(files: Files) -> Iterator[_Group]:
    for fields in _rows(files, "/etc/group"):
        if len(fields) >= 4 and _is_id(fields[2]):
            yield _Group(fields[0], int(fields[2]), tuple(fields[3].strip().split(",")))
