"""The simulator's result files other than PNG: small, well formed, never equal."""

from __future__ import annotations

import io
import json
import struct
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from app.simulator.files import MEDIA_TYPES, make_file


def make(ending: str, prompt: str = "a boat", caption: str = "t-1 · 0") -> bytes:
    return make_file(ending, size=(256, 128), prompt=prompt, caption=caption)


def boxes(content: bytes) -> dict[str, bytes]:
    """Take an MP4 apart; the lengths must add up."""
    found: dict[str, bytes] = {}
    while content:
        length, name = struct.unpack(">I4s", content[:8])
        assert 8 <= length <= len(content)
        found[name.decode()], content = content[8:length], content[length:]
    return found


def test_a_film_is_a_short_mp4_with_a_length() -> None:
    content = make("mp4")
    parts = boxes(content)
    assert list(parts) == ["ftyp", "moov", "free"]
    assert parts["ftyp"].startswith(b"isom")
    header = boxes(parts["moov"])["mvhd"]
    assert len(header) == 100
    scale, length = struct.unpack(">II", header[12:20])
    assert length / scale == 5
    assert len(content) < 1000


def test_a_jpg_has_the_size_that_was_told() -> None:
    with Image.open(io.BytesIO(make("jpg"))) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("JPEG", (256, 128))


@pytest.mark.parametrize("prompt", ["a boat", "<script>alert(1)</script> & more"])
def test_an_svg_is_xml_whatever_the_prompt(prompt: str) -> None:
    root = ET.fromstring(make("svg", prompt))  # noqa: S314 - made here
    assert (root.tag, root.get("viewBox")) == ("{http://www.w3.org/2000/svg}svg", "0 0 256 128")
    assert root[0].text == prompt


def test_a_transcript_is_json_about_its_recording() -> None:
    text = json.loads(make("json", "https://in.example.com/a.wav"))
    assert text["file_url"] == "https://in.example.com/a.wav"
    assert text["transcripts"][0]["text"] == text["transcripts"][0]["sentences"][0]["text"]


@pytest.mark.parametrize("ending", MEDIA_TYPES)
def test_a_file_is_the_same_every_time_and_no_other_is(ending: str) -> None:
    assert make(ending) == make(ending)
    assert len({make(ending), make(ending, caption="t-1 · 1"), make(ending, caption="t-2 · 0")}) == 3


def test_no_other_ending_is_made() -> None:
    with pytest.raises(LookupError, match="exe"):
        make("exe")
