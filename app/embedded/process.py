"""Owns one server process: how it is started, watched and stopped, and that it never outlives us.

It must not know which server it runs. The kernel signals a child when the *thread* that created it ends, so each
server is created by a thread of its own, which then waits for it: callers may start a server on any thread.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from app.embedded.errors import EmbeddedServerError
from app.embedded.instance import Instance

LAUNCHER = Path(__file__).with_name("launch.py")
# Nothing of the caller's environment: PGHOST, PGOPTIONS or a locale must not change what the server does.
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}
START_SECONDS = 60.0  # a machine under load, or a recovery after power was lost
STOP_SECONDS = 20.0
KILL_SECONDS = 5.0
LOOK_SECONDS = 0.01
LOG_LINES_SHOWN = 15


class ServerProcess:
    """A running server of one instance; its output goes to the instance's log."""

    _process: subprocess.Popen[bytes]  # set by the server's thread before it sets `_created`

    def __init__(self, command: Sequence[str], instance: Instance, *, stop_signal: signal.Signals) -> None:
        """Start `command`; it gets `stop_signal` when it is to end, also when this whole process is killed.

        Raises:
            EmbeddedServerError: the system has no room for one more process.
        """
        self.instance = instance
        self._command = command
        self._stop_signal = stop_signal
        self._fault: OSError | None = None
        self._created = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._live, name=f"embedded {instance.name}", daemon=True).start()
        self._created.wait()
        if self._fault is not None:
            raise EmbeddedServerError(f"{instance.name}: cannot start a process: {self._fault}") from self._fault

    @property
    def pid(self) -> int:
        """The server's process id: the launcher becomes the server, so the id stays."""
        return self._process.pid

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Wait until `is_ready` says so.

        Raises:
            EmbeddedServerError: the server ended, or was not ready after `START_SECONDS`.
        """
        give_up = time.monotonic() + START_SECONDS
        while not is_ready():
            if self._ended.wait(LOOK_SECONDS):
                raise self.failure("ended while starting")
            if time.monotonic() > give_up:
                raise self.failure(f"was not ready after {START_SECONDS:.0f} seconds")

    def wait(self) -> int:
        """Wait for the end of a program that ends by itself, and return its exit code.

        Raises:
            EmbeddedServerError: it was not done after `START_SECONDS`.
        """
        if not self._ended.wait(START_SECONDS):
            raise self.failure(f"was not done after {START_SECONDS:.0f} seconds")
        return self._process.returncode

    def stop(self) -> None:
        """End the server: politely first, by SIGKILL when it does not listen. Does nothing when it has ended."""
        for sign, seconds in ((self._stop_signal, STOP_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
            if self._ended.is_set():
                return
            self._process.send_signal(sign)
            self._ended.wait(seconds)

    def failure(self, what: str) -> EmbeddedServerError:
        """Describe a failure with the end of the server's log."""
        log = self.instance.log_path
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
        shown = "\n".join(f"  {line}" for line in lines) or "  (nothing)"
        return EmbeddedServerError(
            f"{self.instance.name}: {Path(self._command[0]).name} {what}. {log} ends with:\n{shown}"
        )

    def _live(self) -> None:
        try:
            self._process = self._create()
        except OSError as fault:  # no memory, no process slot, no room for the log
            self._fault = fault
            return
        finally:
            self._created.set()
        self._process.wait()
        self._ended.set()

    def _create(self) -> subprocess.Popen[bytes]:
        user = self.instance.user
        launcher = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), str(int(self._stop_signal))]
        with self.instance.log_path.open("ab") as log:
            return subprocess.Popen(
                [*launcher, str(user or "-"), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.instance.server_dir,
                env=ENVIRONMENT,
                # The server holds this lock as long as one of its processes lives, whatever becomes of us.
                pass_fds=[self.instance.server_lock],
                # Ctrl-C in a terminal goes to us alone; we end the server when we no longer need it.
                start_new_session=True,
            )
