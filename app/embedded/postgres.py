"""Owns an embedded Postgres: its files, its settings, and when it is ready; knows nothing of what is stored in it."""

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.embedded.instance import Instance, open_instance
from app.embedded.places import say, user_for_servers
from app.embedded.process import ENVIRONMENT, ServerProcess
from app.embedded.programs import postgres_programs

SUPERUSER = "postgres"
PORT = 5432  # only part of the socket's file name: the server listens on no network
CONNECTIONS = 200
SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": str(CONNECTIONS),
    "huge_pages": "off",  # "try" ends in a bus error in containers whose huge pages are another's
    "timezone": "UTC",
    "log_timezone": "UTC",
}
# For data that is thrown away: a crash of the machine may cost everything, a crash of the server nothing.
UNSAFE_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
QUESTION_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A running server. Who can enter `socket_dir` may do everything: its owner and root, nobody else."""

    socket_dir: Path
    data_dir: Path
    log_path: Path
    pid: int

    @property
    def url(self) -> str:
        """A URL of the database that is always there; asyncpg, SQLAlchemy and libpq understand it."""
        return self.url_for(SUPERUSER)

    def url_for(self, database: str) -> str:
        """Return the URL of another database on this server."""
        return f"postgresql://{SUPERUSER}@/{database}?host={self.socket_dir}&port={PORT}"


@contextmanager
def running_postgres(
    state_dir: Path, *, durable: bool = True, announce: Callable[[str], None] = say
) -> Iterator[PostgresServer]:
    """Run a Postgres server as long as the context is open; it ends cleanly also when this process is killed.

    Durable data lives in `state_dir`/postgres and is used by one process at a time. Otherwise the data is fast, private
    to this call and removed on leaving (`state_dir`/tests-PID-…). Works as an ordinary user and as root, where the
    server runs as the user `nobody`. Unusual places are told to `announce`. Blocks for about half a second.

    Raises:
        EmbeddedServerError: no server can run here, or another process uses the data; the message says what to do.
    """
    state_dir = state_dir.resolve()
    user = user_for_servers(state_dir / "postgres" / "server")
    with open_instance(state_dir, "postgres", user=user, throwaway=not durable, announce=announce) as instance:
        programs = postgres_programs(instance.home, user)
        data = _prepare_data(instance, programs, durable=durable)
        process = _start(instance, programs, data=data, durable=durable)
        try:
            process.wait_until(lambda: _reports_ready(data, process.pid))
            _check_ours(process, programs, data=data)
            yield PostgresServer(instance.socket_dir, data, instance.log_path, process.pid)
        finally:
            process.stop()


def _prepare_data(instance: Instance, programs: Path, *, durable: bool) -> Path:
    """Create the data directory, unless there is one; a creation that broke off leaves nothing that looks like one."""
    data = instance.server_dir / "data"
    if data.exists():
        # Both locks are ours, so no server runs here. What a killed one left would stop the next from starting
        # whenever its process id has been given to somebody else.
        (data / "postmaster.pid").unlink(missing_ok=True)
        return data
    draft = instance.server_dir / "data.draft"
    shutil.rmtree(draft, ignore_errors=True)
    command = [str(programs / "initdb"), "-D", str(draft), "-U", SUPERUSER, "-A", "trust", "-E", "UTF8"]
    command += ["--locale-provider=builtin", "--locale=C.UTF-8", "--set=huge_pages=off", "--no-instructions"]
    initdb = ServerProcess(command if durable else [*command, "--no-sync"], instance, stop_signal=signal.SIGTERM)
    try:
        if initdb.wait() != 0:
            raise initdb.failure("could not create a database")
    finally:
        initdb.stop()
    draft.rename(data)
    return data


def _start(instance: Instance, programs: Path, *, data: Path, durable: bool) -> ServerProcess:
    settings = SETTINGS | {"unix_socket_directories": str(instance.socket_dir)} | ({} if durable else UNSAFE_SETTINGS)
    for stale in instance.socket_dir.glob(".s.PGSQL.*"):
        stale.unlink()
    command = [str(programs / "postgres"), "-D", str(data)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    # SIGINT is Postgres's fast shutdown: open transactions are ended, everything is written, nothing to recover.
    return ServerProcess(command, instance, stop_signal=signal.SIGINT)


def _reports_ready(data: Path, pid: int) -> bool:
    """Read what the server says of itself in its own data directory; an answer on a port could be a stranger's."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"


def _check_ours(process: ServerProcess, programs: Path, *, data: Path) -> None:
    """Ask the server behind our socket whose data it serves."""
    where = ["-h", str(process.instance.socket_dir), "-p", str(PORT), "-U", SUPERUSER, "-d", SUPERUSER]
    answer = subprocess.run(
        [str(programs / "psql"), "-X", "-A", "-t", *where, "-c", "show data_directory"],
        env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=QUESTION_SECONDS,
    )  # fmt: skip
    if answer.stdout.strip() != str(data):
        raise process.failure(f"is not the server behind its socket ({answer.stdout.strip() or answer.stderr.strip()})")
