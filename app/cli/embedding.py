"""DASHGATE_EMBEDDED=1: a Postgres of our own in the state directory, and the secrets that go with it.

One process owns the server and ends it; every other one is a guest. Files in the state directory:

embedded.lock   held by the owner as long as it lives
embedded.url    where guests find the server; written by owners that last (serve, worker, demo), removed when they end
secret.key, admin.token   made once, for the owner's eyes only

So `serve` in one terminal and `account add` in another work. The owner must be the last to stop: its guests lose their
database with it, and have it back when another owner starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import typer

if TYPE_CHECKING:
    from app.settings import Settings

LOCK, ADDRESS = "embedded.lock", "embedded.url"
KEPT = {"secret_key": "secret.key", "admin_token": "admin.token"}  # setting: the file it is kept in
OWNER_SECONDS = 90.0  # the longest we wait for another process to start its server, or to end a short command
LOOK_SECONDS = 0.05


@contextlib.contextmanager
def own_database(settings: Settings, *, lasting: bool) -> Iterator[Settings]:
    """Yield the settings to work with: as they are, or with an embedded server's URL and the secrets kept beside it.

    Raises:
        NotReady: another process holds the state directory and has no server for us.
        EmbeddedServerError: no server can run here.
    """
    from pydantic import SecretStr

    if settings.database_url is not None or not settings.embedded:
        yield settings
        return
    usable = with_secrets(settings)
    with _server_url(settings.state_dir, lasting=lasting) as url:
        yield usable.model_copy(update={"database_url": SecretStr(url)})


def with_secrets(settings: Settings) -> Settings:
    """Return the settings with a secret key and an operators' token: those that are set, else those kept here."""
    from pydantic import SecretStr

    missing = [name for name in KEPT if getattr(settings, name) is None]
    kept = {name: SecretStr(_kept_secret(settings.state_dir / KEPT[name])) for name in missing}
    return settings.model_copy(update=kept)


def _kept_secret(path: Path) -> str:
    """Read a secret, or make it; of two processes that make it at once, both use the same."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{secrets.token_hex(8)}")
        draft.touch(mode=0o600, exist_ok=False)
        draft.write_text(secrets.token_urlsafe(32), encoding="utf-8")
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
            typer.echo(f"Made {path}; keep it with your backups.", err=True)
        draft.unlink()
    return path.read_text(encoding="utf-8").strip()


@contextlib.contextmanager
def _server_url(state_dir: Path, *, lasting: bool) -> Iterator[str]:
    from app.embedded import running_postgres

    state_dir.mkdir(parents=True, exist_ok=True)
    address = state_dir / ADDRESS
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context((state_dir / LOCK).open("a", encoding="utf-8"))
        url = _owners_url(lock, address)
        if url is None:
            url = stack.enter_context(running_postgres(state_dir)).url
            if lasting:
                stack.callback(address.unlink, missing_ok=True)
                _publish(address, url)
        elif lasting:
            typer.echo("Using the embedded Postgres of another dashgate process; stop that one last.", err=True)
        yield url


def _owners_url(lock: TextIO, address: Path) -> str | None:
    """Return the URL of the owner's server, or None when we are the owner from now on.

    Raises:
        NotReady: neither came true in time.
    """
    from app.errors import NotReady

    give_up = time.monotonic() + OWNER_SECONDS
    while time.monotonic() < give_up:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            address.unlink(missing_ok=True)  # of an owner that was killed
            return None
        with contextlib.suppress(FileNotFoundError):
            return address.read_text(encoding="utf-8")
        time.sleep(LOOK_SECONDS)
    raise NotReady("E08", f"another process holds {address.parent}", "stop it, or set DASHGATE_STATE_DIR")


def _publish(address: Path, url: str) -> None:
    draft = address.with_name(f".{ADDRESS}.{secrets.token_hex(4)}")
    draft.touch(mode=0o600)
    draft.write_text(url, encoding="utf-8")
    draft.replace(address)
