"""Becomes a server program: drops to its user, ties its life to its parent's, executes it.

Run as a plain script by `process.py`, never imported: it must start fast and without site-packages, and know nothing
of the rest of the project.

    launch.py PARENT_PID SIGNAL USER PROGRAM [ARGUMENT ...]      USER is "UID:GID", or "-" to stay who we are
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def launch(parent_pid: int, death_signal: int, *, user: str, command: list[str]) -> None:
    """Replace this process by `command`, which then gets `death_signal` when the parent dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    if user != "-":
        uid, gid = (int(part) for part in user.split(":"))
        os.setgroups([gid])
        os.setgid(gid)
        os.setuid(uid)
    os.umask(0o077)
    # After the drop, not before: the kernel forgets the parent-death signal at every change of uid.
    if sys.platform == "linux" and libc.prctl(PR_SET_PDEATHSIG, death_signal) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) was refused")
    # A parent that died before the line above sends no signal any more.
    if os.getppid() != parent_pid:
        sys.exit(f"the process {parent_pid} that wanted this server has ended")
    # A shell that starts jobs in the background lets them ignore SIGINT, and that survives exec.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.execv(command[0], command)  # noqa: S606 - becoming the program, without a shell, is this file's purpose


if __name__ == "__main__":
    launch(int(sys.argv[1]), int(sys.argv[2]), user=sys.argv[3], command=sys.argv[4:])
