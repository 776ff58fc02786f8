"""Owns the folder of one server: who may use it, what lies where in it, and that it is used once at a time.

NAME/owner.lock     held by the process that opened the instance; contains its id for people
NAME/server.lock    held by the server itself, so that a successor waits for a server that is still shutting down
NAME/server.log     the output of the present server; the one before is server.log.1
NAME/server/        what the server's user owns: its data and, where its path is short enough, its socket
"""

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.embedded.errors import EmbeddedServerError
from app.embedded.places import ServerUser, is_fit_for_sockets, prepare_home, prepare_temp_home, remove_tree, temp_homes

THROWAWAY = "tests-"
LAST_OWNER_SECONDS = 1.0  # a process that was killed just now takes a moment to let go
LAST_SERVER_SECONDS = 30.0  # the longest we wait for a server whose process was killed to shut down
LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Instance:
    """The folder of one server, open for this process alone."""

    name: str
    home: Path
    path: Path
    socket_dir: Path
    user: ServerUser | None
    server_lock: int

    @property
    def log_path(self) -> Path:
        """Where the server's output goes."""
        return self.path / "server.log"

    @property
    def server_dir(self) -> Path:
        """What the server may write to."""
        return self.path / "server"


@contextmanager
def open_instance(
    state_dir: Path, name: str, *, user: ServerUser | None, throwaway: bool, announce: Callable[[str], None]
) -> Iterator[Instance]:
    """Open the folder `name`, or a throwaway folder of this process that is removed on leaving.

    Raises:
        EmbeddedServerError: another process uses it (the message has its id), or it belongs to another user.
    """
    state_dir = state_dir.resolve()
    with ExitStack() as stack:
        try:
            home = prepare_home(state_dir, user, announce=announce)
            if throwaway:
                _remove_abandoned(home, state_dir)
                name = f"{THROWAWAY}{os.getpid()}-{name}-{secrets.token_hex(2)}"
            path = home / name
            server_lock = _lock(path, stack, throwaway=throwaway)
            socket_dir = _prepare_folder(path, state_dir, user=user, stack=stack, announce=announce)
        except PermissionError as refused:
            raise EmbeddedServerError(
                f"{refused.filename} belongs to another user: "
                "run `make clean` as that user, or set DASHGATE_STATE_DIR to a directory of your own"
            ) from refused
        yield Instance(name, home, path, socket_dir, user, server_lock)


def refuse_if_in_use(home: Path) -> None:
    """Check that no process uses any instance below `home`.

    Raises:
        EmbeddedServerError: one does; the message has its id. Or the instance is another user's.
    """
    for lock in home.rglob("owner.lock"):
        with ExitStack() as stack:
            try:
                _lock_folder(lock.parent, stack, patient=True)
            except PermissionError as refused:
                raise EmbeddedServerError(f"{lock.parent} belongs to another user") from refused


def _remove_abandoned(home: Path, state_dir: Path) -> None:
    """Remove throwaway folders whose process was killed and whose server has ended."""
    for path in home.glob(f"{THROWAWAY}*"):
        with ExitStack() as stack:
            try:
                _lock_folder(path, stack, patient=False)
                for temp_home in temp_homes(state_dir):
                    remove_tree(temp_home / path.name)
                remove_tree(path)
            except (EmbeddedServerError, PermissionError, FileNotFoundError):
                continue  # in use, another user's, or just being removed by a third process


def _lock(path: Path, stack: ExitStack, *, throwaway: bool) -> int:
    """Make the folder when needed and hold both of its locks until `stack` closes."""
    if not throwaway:
        path.mkdir(exist_ok=True)
        return _lock_folder(path, stack, patient=True)
    # Under its own name only once it is locked: until then `_remove_abandoned` would take it for a dead process's.
    unlocked = path.with_name(f"new-{path.name}")
    unlocked.mkdir()
    server_lock = _lock_folder(unlocked, stack, patient=False)
    unlocked.rename(path)
    stack.callback(remove_tree, path)
    return server_lock


def _lock_folder(path: Path, stack: ExitStack, *, patient: bool) -> int:
    owner = _open_lock(path / "owner.lock", stack)
    if not _take_lock(owner, seconds=LAST_OWNER_SECONDS if patient else 0):
        holder = os.pread(owner, 20, 0).decode(errors="replace").strip() or "unknown"
        raise EmbeddedServerError(f"{path} is in use by process {holder}: stop that one first")
    os.ftruncate(owner, 0)
    os.pwrite(owner, f"{os.getpid()}\n".encode(), 0)
    server = _open_lock(path / "server.lock", stack)
    if not _take_lock(server, seconds=LAST_SERVER_SECONDS if patient else 0):
        raise EmbeddedServerError(f"the server of {path} still runs although its process has ended; see its server.log")
    return server


def _open_lock(path: Path, stack: ExitStack) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    stack.callback(os.close, descriptor)
    return descriptor


def _take_lock(descriptor: int, *, seconds: float) -> bool:
    give_up = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up:
                return False
            time.sleep(LOOK_SECONDS)
        else:
            return True


def _prepare_folder(
    path: Path, state_dir: Path, *, user: ServerUser | None, stack: ExitStack, announce: Callable[[str], None]
) -> Path:
    """Make the server's part of the folder, put the old log aside, and return the directory for its socket."""
    log = path / "server.log"
    if log.exists():
        log.replace(path / "server.log.1")
    log.touch(mode=0o600)
    if user is not None:
        path.chmod(0o711)  # so that the server gets to its part under any umask of ours
    server_dir = path / "server"
    _make_private(server_dir, user)
    if is_fit_for_sockets(server_dir):
        return server_dir
    socket_dir = prepare_temp_home(state_dir, user) / path.name
    announce(f"the server's socket is in {socket_dir}: {server_dir} is too long for one, or needs quoting in a URL")
    _make_private(socket_dir, user)
    stack.callback(remove_tree, socket_dir)
    return socket_dir


def _make_private(directory: Path, user: ServerUser | None) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    if user is not None:
        os.chown(directory, user.uid, user.gid)
