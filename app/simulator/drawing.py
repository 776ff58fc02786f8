"""Drawing the pictures among the result files. Pure: the same arguments give the same bytes. Knows no tasks."""

from __future__ import annotations

import hashlib
import io
import textwrap
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

# A gateway reads a file once or twice soon after success; 128 files are about 8 MB.
CACHED_FILES = 128
LONGEST_TEXT = 600


@lru_cache(maxsize=CACHED_FILES)
def draw_png(width: int, height: int, *, prompt: str, caption: str) -> bytes:
    """Draw a PNG of `width` times `height` pixels with the prompt and a caption on it.

    The palette saves two thirds of the bytes, and PNG needs no costly row filters for palettes. That keeps 1280*1280
    near 20 ms.
    """
    file = io.BytesIO()
    _draw(width, height, prompt=prompt, caption=caption).save(file, "PNG", compress_level=1)
    return file.getvalue()


@lru_cache(maxsize=CACHED_FILES)
def draw_jpg(width: int, height: int, *, prompt: str, caption: str) -> bytes:
    """Draw the same as a JPG."""
    file = io.BytesIO()
    _draw(width, height, prompt=prompt, caption=caption).convert("RGB").save(file, "JPEG", quality=80)
    return file.getvalue()


def _draw(width: int, height: int, *, prompt: str, caption: str) -> Image.Image:
    """Draw one channel and colour it by a palette of 256 steps between two colours, which keeps letters smooth."""
    canvas = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(canvas)
    side = min(width, height)
    margin = side // 16
    pen.rectangle((margin // 2, margin // 2, width - margin // 2, height - margin // 2), outline=90, width=side // 200)
    letter = side // 24
    columns = (width - 2 * margin) * 2 // letter  # an average letter is half as wide as the font is high
    text = textwrap.fill(" ".join(prompt.split())[:LONGEST_TEXT], columns)
    pen.multiline_text((margin, margin), text, font=_font(letter), fill=255, spacing=letter // 3)
    pen.text((margin, height - margin - letter), caption, font=_font(letter // 2), fill=190)
    canvas.putpalette(_palette(prompt))
    return canvas


@lru_cache(maxsize=16)
def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=height)


def _palette(prompt: str) -> list[int]:
    """Return 256 colours from a dark one, chosen by the prompt, to white."""
    dark = [channel // 2 for channel in hashlib.sha256(prompt.encode()).digest()[:3]]
    return [channel + (255 - channel) * step // 255 for step in range(256) for channel in dark]
