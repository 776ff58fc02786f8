"""Goal: a newcomer who pastes every command of the README, in its order, gets what it promises.
Method: a copy of the checkout, one shell, the README's own blocks; only ports are free ones, and long things are short.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
WAIT_UNTIL_READY = "until curl -sf http://127.0.0.1:8080/readyz; do kill -0 $(jobs -p); done"
SECONDS_MOST = 240


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on, all different."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def as_shell(language: str, block: str) -> str:
    """Return a block of the README as shell; Python is fed to the interpreter on the path."""
    return f"python - <<'SNIPPET'\n{block}SNIPPET\n" if language == "python" else block


def script_of(readme: str) -> str:
    """Return all blocks as one script: the demo ends after its journey, and `make test`, which runs this very test's
    suite, runs one file; servers begun in the background are waited for once, and stopped at the end."""
    blocks = [as_shell(*found) for found in BLOCK.findall(readme)]
    script = "\n".join(blocks)
    script = re.sub(r"^make demo$", "make demo ONCE=1", script, flags=re.MULTILINE)
    script = re.sub(r"^make test$", "make test T=tests/unit/test_doctests.py", script, flags=re.MULTILINE)
    script = script.replace("dashgate doctor\n", f"{WAIT_UNTIL_READY}\ndashgate doctor\n")
    for port in dict.fromkeys(re.findall(r"\b80[89]\d\b", script)):
        script = script.replace(port, f"${{PORT_{port}}}")
    return f"set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n{script}"


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A copy of what git knows of, with the environment that runs this test (made by the same Makefile in CI)."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    copy = tmp_path / "dashgate"
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    (copy / ".venv").mkdir()
    for part in ("bin", "lib", "pyvenv.cfg"):
        (copy / ".venv" / part).symlink_to(Path(sys.prefix) / part)
    (copy / ".venv" / ".installed").touch()
    yield copy
    subprocess.run(["make", "clean"], cwd=copy, check=True, capture_output=True)


def test_every_command_of_the_readme_does_what_it_says(checkout: Path) -> None:
    script = script_of((checkout / "README.md").read_text(encoding="utf-8"))
    ports = dict.fromkeys(re.findall(r"PORT_\d+", script), 0)
    ports = dict(zip(ports, map(str, free_ports(len(ports))), strict=True))
    (operators,) = free_ports(1)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(checkout),
        "DASHGATE_OPERATORS_LISTEN": f"127.0.0.1:{operators}",
        "DASHGATE_PUBLIC_URL": f"http://127.0.0.1:{ports['PORT_8080']}",
        **ports,
    }
    for port, number in ports.items():
        script = script.replace(f"${{{port}}}", number)  # also inside quotes that the shell leaves alone
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS_MOST,
        check=False,
    )
    told = f"{done.stdout[-6000:]}\n--- stderr ---\n{done.stderr[-4000:]}"
    assert done.returncode == 0, told
    assert "All is well" in done.stdout, told  # the demo
    assert "SUCCEEDED" in done.stdout, told  # the SDK
    for printed in ("answered: [", "streamed: [", "generated: http"):  # synchronously, as a stream, by OpenAI's SDK
        assert printed in done.stdout, told
    assert '"task_status": "PENDING"' in done.stdout, told  # curl
    assert "event:result" in done.stdout, told
    assert '"code": "UnsupportedOperation"' in done.stdout, told  # a cancel that comes too late
    assert list((checkout / ".dashgate" / "art").rglob("*.png")), told
