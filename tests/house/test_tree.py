"""What must not be in the tree: addresses of package registries, paths of somebody's machine, secrets, leftovers."""

import re
import subprocess
from functools import cache

from tests.house.source import ROOT

# In pieces, so that this file may stand in the tree itself.
REGISTRIES = "|".join(
    (
        r"py" + r"pi\.org",
        r"python" + r"hosted\.org",
        r"npm" + r"js\.(org|com)",
        r"deb\.deb" + r"ian\.org",
        r"(index|extra-index)-" + r"url\b",
        r"mirrors?\.\w+\.(com|edu|cn|org)" + r"/(py" + r"pi|deb" + r"ian|docker)",
    )
)
MACHINES = r"(^|[^A-Za-z0-9_.])/(wo" + r"rk|fa" + r"rm|ro" + r"ot|ho" + r"me/[a-z]+|Us" + r"ers/[a-z]+)/"
KEYS = (
    r"\b(sk-[a-f0-9]{32}|LT"
    + r"AI5t[A-Za-z0-9]{16,}\b(?<!Simulator1)|AK"
    + r"IA[A-Z0-9]{16}|-----BEGIN [A-Z ]*PRIVATE KEY)"
)


@cache
def tracked() -> dict[str, str]:
    """Read every text file that git tracks, or would if it were added."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    files = {}
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in (content := path.read_bytes()):
            files[name] = content.decode("utf-8")
    return files


def _found(pattern: str) -> list[str]:
    search = re.compile(pattern)
    return [
        f"{name}:{number}"
        for name, text in tracked().items()
        for number, line in enumerate(text.splitlines(), 1)
        if search.search(line)
    ]


def test_the_tree_names_no_package_registry() -> None:
    assert _found(REGISTRIES) == []


def test_the_tree_names_no_path_of_a_machine() -> None:
    assert _found(MACHINES) == []


def test_the_tree_holds_nothing_that_looks_like_a_secret() -> None:
    assert _found(KEYS) == []


def test_the_tree_holds_no_state_and_no_environment() -> None:
    wrong = re.compile(r"(^|/)(\.env|\.dashgate|\.venv|__pycache__|node_modules)(/|$)|\.(pyc|sqlite3?|pem|key)$")
    assert [name for name in tracked() if wrong.search(name)] == []


def test_no_test_is_switched_off() -> None:
    # A condition with its reason is fine: some things only root can show.
    assert _found(r"pytest\.mark\.(sk" + r"ip|xf" + r"ail)\b") == []


def test_no_file_was_left_by_a_merge() -> None:
    assert _found(r"^(<{7}|>{7}) ") == []
