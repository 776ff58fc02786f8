"""The result files of every kind, made by their ending. Pure: the same arguments give the same bytes.

Knows no tasks and no links. Each file carries prompt or caption, so that no two results are equal.
"""

from __future__ import annotations

import json
import struct
from xml.sax.saxutils import escape

from app.simulator.drawing import draw_jpg, draw_png

MEDIA_TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "svg": "image/svg+xml",
    "mp4": "video/mp4",
    "json": "application/json",
}
VIDEO_MILLISECONDS = 5000
_UNITY_MATRIX = (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def make_file(ending: str, *, size: tuple[int, int], prompt: str, caption: str) -> bytes:
    """Make a file of a kind; the size is that of pictures in pixels. Raises: `LookupError` for an unknown ending.

    >>> make_file("svg", size=(8, 8), prompt="a < b", caption="t · 0")[-36:]
    b'">a &lt; b</text><!--t \\xc2\\xb7 0--></svg>'
    """
    match ending:
        case "png":
            return draw_png(*size, prompt=prompt, caption=caption)
        case "jpg":
            return draw_jpg(*size, prompt=prompt, caption=caption)
        case "svg":
            return _svg(size, prompt=prompt, caption=caption)
        case "mp4":
            return _mp4(f"{caption} {prompt}")
        case "json":
            return _transcript(prompt, caption=caption)
    raise LookupError(f"no file ends in {ending!r}")


def _svg(size: tuple[int, int], *, prompt: str, caption: str) -> bytes:
    width, height = size
    text = f'<text x="{width // 16}" y="{height // 2}" font-size="{height // 8}">{escape(prompt)}</text>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
    return f"{head}{text}<!--{caption}--></svg>".encode()


def _mp4(title: str) -> bytes:
    """Make the smallest film that players open: five seconds without a track, its title in a free box."""
    kind = _box(b"ftyp", b"isom" + struct.pack(">I", 0x200) + b"isomiso2mp41")
    times = struct.pack(">IIIII", 0, 0, 0, 1000, VIDEO_MILLISECONDS)  # version and flags, made, changed, scale, length
    pace = struct.pack(">IH10x", 0x10000, 0x100)  # rate and volume: one
    matrix = struct.pack(">9I", *_UNITY_MATRIX)
    header = _box(b"mvhd", times + pace + matrix + bytes(24) + struct.pack(">I", 1))
    return kind + _box(b"moov", header) + _box(b"free", title.encode())


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + name + content


def _transcript(prompt: str, *, caption: str) -> bytes:
    text = f"This is what was said in {caption}."
    transcript = {"channel_id": 0, "text": text, "sentences": [{"sentence_id": 1, "text": text}]}
    return json.dumps({"file_url": prompt, "transcripts": [transcript]}, ensure_ascii=False).encode()
