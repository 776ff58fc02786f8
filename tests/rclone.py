"""A real S3 for tests: rclone serving a temporary folder with real signature checks."""

import contextlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aiohttp.test_utils import unused_port

START_SECONDS = 30.0


@dataclass(frozen=True)
class RunningS3:
    """What a place needs to know; `folder` is where the objects lie as files."""

    endpoint: str
    host: str
    port: int
    bucket: str
    access_key_id: str
    secret_access_key: str
    folder: Path
    process: "subprocess.Popen[bytes]"


@contextlib.contextmanager
def running_s3(bucket: str = "images", *, path_style: bool = True) -> Iterator[RunningS3]:
    """Run rclone's S3 server on a free loopback port until the block ends; then its own process is stopped.

    `path_style=False` serves the bucket as `bucket.HOST`, as Alibaba OSS does.
    """
    key_id, secret, port = "AKIDFORTESTS00000001", "secret-for-tests-0000000000000000000001", unused_port()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / bucket
        folder.mkdir()
        process = subprocess.Popen(
            [
                *(_rclone(), "serve", "s3", root, "--addr", f"127.0.0.1:{port}", "--auth-key", f"{key_id},{secret}"),
                *("--config", ""),  # none of this machine's (and never --dir-cache-time 0: rclone spins on it)
                f"--force-path-style={'true' if path_style else 'false'}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            _wait_until_it_answers(process, port)
            yield RunningS3(f"http://127.0.0.1:{port}", "127.0.0.1", port, bucket, key_id, secret, folder, process)
        finally:
            process.terminate()
            process.communicate()


def _rclone() -> str:
    """The wheel puts the program beside the interpreter."""
    found = shutil.which("rclone", path=sysconfig.get_path("scripts")) or shutil.which(
        "rclone", path=str(Path(sys.executable).parent)
    )
    if found is None:
        raise RuntimeError("rclone is missing: install the dev extra")
    return found


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", port: int) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"rclone ended: {process.communicate()[1].decode()}")
        try:
            opener.open(f"http://127.0.0.1:{port}/", timeout=1)
        except urllib.error.HTTPError:
            return  # 403: it checks signatures
        except OSError:
            time.sleep(0.02)
    raise RuntimeError("rclone did not start")
