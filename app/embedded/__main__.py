"""Owns the command behind `make clean`: python -m app.embedded clean STATE_DIR."""

import sys
from pathlib import Path

from app.embedded.errors import EmbeddedServerError
from app.embedded.instance import refuse_if_in_use
from app.embedded.places import remove_tree, temp_homes


def clean(state_dir: Path) -> None:
    """Remove the state directory, and the temporary directory that stood in for it.

    Raises:
        EmbeddedServerError: a server in it still runs, files belong to another user, or this is no state directory.
    """
    state_dir = state_dir.resolve()
    if Path.cwd().is_relative_to(state_dir) or Path.home().is_relative_to(state_dir):
        raise EmbeddedServerError(f"{state_dir} holds more than state: not removed")
    homes = [state_dir, *temp_homes(state_dir)]
    for home in homes:
        refuse_if_in_use(home)
    for home in homes:
        remove_tree(home)


def main(arguments: list[str]) -> int:
    """Run the command; return its exit code."""
    if len(arguments) != 2 or arguments[0] != "clean":
        sys.stderr.write("usage: python -m app.embedded clean STATE_DIR\n")
        return 2
    try:
        clean(Path(arguments[1]))
    except EmbeddedServerError as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
