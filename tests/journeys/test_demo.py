"""Goal: the first five minutes of somebody who has cloned the repository.
Method: `dashgate demo --once` as a process of its own, twice on one state directory, with nothing else set.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.embedded.__main__ import clean

PATIENCE_SECONDS = 150
STORY = ["submitting", "pending", "delivering", "succeeded"]  # running passes too, unless nobody looked meanwhile


@pytest.fixture
def state_dir(tmp_path: Path) -> Iterator[Path]:
    """A state directory whose embedded server, and what it put elsewhere, is removed."""
    yield tmp_path / "state"
    clean(tmp_path / "state")


def demo(state_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end."""
    return subprocess.run(
        [sys.executable, "-m", "app.cli", "demo", "--once", *arguments],
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "DASHGATE_STATE_DIR": str(state_dir)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def test_the_demo_tells_its_story_and_a_second_run_tells_it_to_programs(state_dir: Path) -> None:
    told = demo(state_dir)
    assert told.returncode == 0, told.stdout + told.stderr
    places = [told.stdout.index(f"  {state}") for state in STORY]
    assert places == sorted(places)
    pictures = sorted((state_dir / "demo" / "pictures").rglob("*.png"))
    assert pictures
    assert all(str(picture) in told.stdout for picture in pictures)
    assert "The vendor's SDK" in told.stdout
    assert "All is well" in told.stdout
    assert "curl -s http://127.0.0.1:" in told.stdout
    assert "serve.started" in (state_dir / "demo" / "demo.log").read_text()

    again = demo(state_dir, "--json")
    assert again.returncode == 0, again.stdout + again.stderr
    document = json.loads(again.stdout)
    states = [state["state"] for state in document["states"]]
    assert [state for state in states if state in STORY][-2:] == STORY[-2:]
    assert document["told"][-1] == "SUCCEEDED"
    assert document["trouble"] is None
    assert len(document["links"]) == len(document["files"]) > 0
    for file, sha256 in zip(document["files"], document["sha256s"], strict=True):
        assert file["sha256"] == dict.fromkeys(("link", "folder", "database", "upstream"), sha256)
        assert hashlib.sha256(Path(file["path"]).read_bytes()).hexdigest() == sha256
    (line,) = document["usage"]
    assert (line["team"], line["tasks"]) == ("demo", 2)
    assert not (state_dir / "demo" / "embedded.url").exists()
