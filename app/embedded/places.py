"""Owns where an embedded server's files may live and which system user runs it; starts nothing.

Everything lives in the state directory. One exception: where the server's user cannot enter it, or its path is too
long for a socket, one private directory under the system's temporary directory is used, named after the state
directory so that it is found again.
"""

import hashlib
import os
import pwd
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from app.embedded.errors import EmbeddedServerError

# A socket address holds 107 bytes on Linux and 103 on macOS, "/.s.PGSQL.5432" included.
SOCKET_DIR_BYTES = 89
# Other characters would need quoting in a URL, in the server's configuration, or in both, each in its own way.
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+-]+")
TEMP_NAME = "dashgate-"


@dataclass(frozen=True, slots=True)
class ServerUser:
    """A system user that runs a server in our place."""

    uid: int
    gid: int

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"

    def can_enter(self, directory: Path) -> bool:
        """Tell whether this user may pass through `directory` and every directory above it."""
        return all(self._may_pass(place.stat()) for place in (directory, *directory.parents))

    def _may_pass(self, status: os.stat_result) -> bool:
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self.gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)


def user_for_servers(data: Path) -> ServerUser | None:
    """Return the user a server must drop to, or None when it can run as ourselves.

    Postgres refuses to run as root. Data that an ordinary user made stays that user's when root comes by.

    Raises:
        EmbeddedServerError: there is no user that Postgres would accept.
    """
    if os.geteuid() != 0:
        _refuse_nameless(os.geteuid())
        return None
    if data.exists() and data.stat().st_uid != 0:
        return ServerUser(data.stat().st_uid, data.stat().st_gid)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError as missing:
        raise EmbeddedServerError(
            "Postgres does not run as root, and this system has no user `nobody` to run it as: "
            "run as an ordinary user, or set DASHGATE_DATABASE_URL to a database of your own"
        ) from missing
    return ServerUser(nobody.pw_uid, nobody.pw_gid)


def prepare_home(state_dir: Path, user: ServerUser | None, *, announce: Callable[[str], None]) -> Path:
    """Create and return the directory for binaries and data: the state directory wherever that works."""
    state_dir.mkdir(parents=True, exist_ok=True)
    if user is None or user.can_enter(state_dir):
        return state_dir
    home = prepare_temp_home(state_dir, user)
    announce(f"the server's user cannot enter {state_dir}: binaries and data live in {home} (`make clean` removes it)")
    return home


def prepare_temp_home(state_dir: Path, user: ServerUser | None) -> Path:
    """Create and return this state directory's private place under the system's temporary directory.

    Raises:
        EmbeddedServerError: somebody else was there first, and could read or replace our files.
    """
    home = _temp_parent() / _temp_name(state_dir)
    home.mkdir(mode=0o700, exist_ok=True)
    status = home.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise EmbeddedServerError(
            f"{home} is not a private directory of ours: remove it, or set TMPDIR to another place"
        )
    if user is not None:
        os.chown(home, -1, user.gid)
        home.chmod(0o710)
    return home


def say(line: str) -> None:
    """Tell a person: the announcement of callers who have no better one."""
    sys.stderr.write(f"{line}\n")


def is_fit_for_sockets(directory: Path) -> bool:
    """Tell whether a socket in `directory` can be bound, and named in a URL without quoting.

    >>> is_fit_for_sockets(Path("/srv/dashgate/.dashgate/postgres/server"))
    True
    >>> is_fit_for_sockets(Path("/srv/my project")), is_fit_for_sockets(Path("/srv" + "/long" * 20))
    (False, False)
    """
    return PLAIN_PATH.fullmatch(str(directory)) is not None and len(str(directory)) <= SOCKET_DIR_BYTES


def temp_homes(state_dir: Path) -> Iterator[Path]:
    """Yield the private temporary directories of this state directory, and of those in it (the demo's), that exist;
    other users' included."""
    inner = [path for path in state_dir.iterdir() if path.is_dir()] if state_dir.is_dir() else []
    for parent in {Path(tempfile.gettempdir()), Path("/tmp")}:  # noqa: S108 - where `_temp_parent` may have gone
        for directory in (state_dir, *inner):
            yield from parent.glob(f"{TEMP_NAME}{_fingerprint(directory)}-*")


def remove_tree(directory: Path) -> None:
    """Remove a directory and what is in it; nothing there is fine.

    Raises:
        EmbeddedServerError: the files belong to another user.
    """
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return
    except PermissionError as refused:
        raise EmbeddedServerError(f"cannot remove {refused.filename}: it belongs to another user") from refused


def _refuse_nameless(uid: int) -> None:
    try:
        pwd.getpwuid(uid)
    except KeyError as nameless:
        raise EmbeddedServerError(
            f"Postgres does not run as user id {uid}, which has no name on this system: "
            "add one to /etc/passwd, or set DASHGATE_DATABASE_URL to a database of your own"
        ) from nameless


def _temp_parent() -> Path:
    parent = Path(tempfile.gettempdir()).resolve()
    longest_below = "x" * 70  # our directory's name, and in it that of an instance
    return parent if is_fit_for_sockets(parent / longest_below) else Path("/tmp")  # noqa: S108 - our directory in it is checked


def _temp_name(state_dir: Path) -> str:
    """Name the checkout for people, the whole path for us, and the user, whose files no other user may touch.

    >>> _temp_name(Path("/srv/my project/.dashgate/demo")).endswith("-myproject")
    True
    """
    above = next((parent.name for parent in state_dir.parents if not parent.name.startswith(".")), "")
    checkout = re.sub(r"[^A-Za-z0-9._-]", "", above)[:16]
    return f"{TEMP_NAME}{_fingerprint(state_dir)}-{os.geteuid()}-{checkout}"


def _fingerprint(state_dir: Path) -> str:
    return hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:8]
