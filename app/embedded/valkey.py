"""Owns an embedded Valkey for tests: an empty one per call that keeps nothing."""

import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.embedded.instance import open_instance
from app.embedded.places import say
from app.embedded.process import ServerProcess
from app.embedded.programs import valkey_program

ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ValkeyServer:
    """A running server, reachable by its socket only."""

    socket_path: Path
    log_path: Path
    pid: int

    @property
    def url(self) -> str:
        """A URL that redis-py accepts; add `?db=N` for another of the sixteen databases."""
        return f"unix://{self.socket_path}"


@contextmanager
def running_valkey(state_dir: Path, *, announce: Callable[[str], None] = say) -> Iterator[ValkeyServer]:
    """Run an empty Valkey server as long as the context is open; it ends also when this process is killed.

    Its folder (`state_dir`/tests-PID-…) is removed on leaving. It runs as ourselves, also as root.

    Raises:
        EmbeddedServerError: no server can run here; the message says what to do.
    """
    with open_instance(state_dir, "valkey", user=None, throwaway=True, announce=announce) as instance:
        path = instance.socket_dir / "valkey.sock"
        command = [str(valkey_program()), "--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
        command += ["--save", "", "--appendonly", "no", "--dir", str(instance.server_dir)]
        process = ServerProcess(command, instance, stop_signal=signal.SIGTERM)
        try:
            process.wait_until(lambda: _answers(path, process.pid))
            yield ValkeyServer(path, instance.log_path, process.pid)
        finally:
            process.stop()


def _answers(path: Path, pid: int) -> bool:
    """Tell whether the server behind the socket is the process we started."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(ANSWER_SECONDS)
        try:
            connection.connect(str(path))
            connection.sendall(b"INFO server\r\n")
            return f"\r\nprocess_id:{pid}\r\n".encode() in connection.recv(65536)
        except OSError:  # no socket yet, or nobody listens on it yet
            return False
