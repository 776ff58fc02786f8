"""The unmodified `dashscope` package uploads local files to the simulator and gets them accepted as inputs.

The legacy classes have no base URL of their own for uploads, therefore it is set where the SDK documents it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dashscope
import pytest
from dashscope import ImageSynthesis, MultiModalConversation
from dashscope.aigc.image_generation import ImageGeneration
from dashscope.common.error import UploadFileException

from app.simulator import BEIJING, Simulator

MODEL = "wan2.6-image"
CONTENTS = {"boat.png": b"a boat\r\n", "纸 船.png": b"a paper boat"}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two local files, as the SDK wants them named."""
    for name, content in CONTENTS.items():
        (tmp_path / name).write_bytes(content)
    return [f"file://{tmp_path / name}" for name in CONTENTS]


@pytest.fixture
def call(sim: Simulator, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call a method of the SDK with the region's key, in a thread."""
    monkeypatch.setattr(dashscope, "base_http_api_url", sim.base_url(BEIJING))

    async def run(method: Callable[..., Any], **options: Any) -> Any:
        return await asyncio.to_thread(method, **{"api_key": sim.key(BEIJING), "model": MODEL, **options})

    return run


def messages(files: list[str]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"text": "a paper boat"}, *({"image": file} for file in files)]}]


def assert_uploaded(sim: Simulator, *, model: str = MODEL, operation: str = "create") -> None:
    """Check that both files arrived whole, and that the call that followed names them, in order."""
    assert [(upload.sha256, upload.model) for upload in sim.truth.uploads] == [
        (hashlib.sha256(content).hexdigest(), model) for content in CONTENTS.values()
    ]
    [entry] = sim.truth.journal.read(operation=operation)
    text = str(entry.body["input"])
    places = [text.index(f"oss://{upload.key}") for upload in sim.truth.uploads]
    assert places == sorted(places)
    assert entry.status == 200


async def test_an_async_call_uploads_its_pictures(sim: Simulator, call: Any, files: list[str]) -> None:
    receipt = await call(ImageGeneration.async_call, messages=messages(files), n=1)
    assert receipt.output.task_status == "PENDING", receipt
    assert_uploaded(sim)


async def test_the_second_generation_uploads_them_too(sim: Simulator, files: list[str]) -> None:
    with dashscope.Client(api_key=sim.key(BEIJING), base_url=sim.base_url(BEIJING)) as client:
        job = await asyncio.to_thread(
            client.images.jobs.create, model=MODEL, prompt="a paper boat", n=1, image_urls=files
        )
    assert job.task_id == sim.truth.tasks[0].id
    assert_uploaded(sim)


async def test_the_two_files_of_a_call_share_a_policy(sim: Simulator, call: Any, files: list[str]) -> None:
    await call(ImageGeneration.async_call, messages=messages(files), n=1)
    operations = [entry.operation for entry in sim.truth.journal]
    assert operations == ["upload_policy", "upload", "upload", "create"]


async def test_a_refused_upload_ends_the_call(sim: Simulator, call: Any, files: list[str]) -> None:
    sim.fail_next("upload", "error", status=403, code="AccessDenied", message="no entry")
    with pytest.raises(UploadFileException, match="no entry"):
        await call(ImageGeneration.async_call, messages=messages(files), n=1)
    assert sim.truth.tasks == ()


@pytest.mark.parametrize(
    ("method", "model", "operation"),
    [
        (ImageGeneration.call, MODEL, "sync"),
        (MultiModalConversation.call, MODEL, "sync"),
        (MultiModalConversation.call, "qwen-image-edit-plus", "sync"),
    ],
)
async def test_a_synchronous_call_uploads_its_pictures(
    sim: Simulator, call: Any, files: list[str], method: Any, model: str, operation: str
) -> None:
    sim.set_durations(0, 0)
    answer = await call(method, model=model, messages=messages(files), n=1)
    assert answer.status_code == 200, answer
    assert answer.output.choices[0].message.content[0]["image"].startswith(f"http://{sim.file_host}/files/")
    assert_uploaded(sim, model=model, operation=operation)


@pytest.mark.parametrize("asked", ["images", "named"])
async def test_pictures_beside_the_prompt_are_uploaded(sim: Simulator, call: Any, files: list[str], asked: str) -> None:
    base, mask = files
    model, inputs = {
        "images": ("wan2.5-i2i-preview", {"images": files}),
        "named": (
            "wanx2.1-imageedit",
            {"function": "description_edit_with_mask", "base_image_url": base, "mask_image_url": mask},
        ),
    }[asked]
    receipt = await call(ImageSynthesis.async_call, model=model, prompt="a paper boat", n=1, **inputs)
    assert receipt.output.task_status == "PENDING", receipt
    assert {upload.model for upload in sim.truth.uploads} == {model}
    assert {upload.sha256 for upload in sim.truth.uploads} == {
        hashlib.sha256(content).hexdigest() for content in CONTENTS.values()
    }
    [entry] = sim.truth.journal.read(operation="create")
    assert all(f"oss://{upload.key}" in str(entry.body["input"]) for upload in sim.truth.uploads)
