"""Which picture comes out of which `size` parameter (pure): in full for `wan2.6-image`, lightly for the others.

Input pictures are never fetched, so a keyword always gives a square and "follows the input" is 1280*1280.
"""

from __future__ import annotations

import re

from app.simulator import problems

STEP = 16
MIN_PIXELS = 768 * 768
MAX_PIXELS_EDIT = 2048 * 2048
MAX_PIXELS_INTERLEAVE = 1280 * 1280
MAX_ASPECT = 4

_KEYWORDS = {"1K": (1280, 1280), "2K": (2048, 2048)}
_FORMAT = re.compile(r"(\d{1,5})\*(\d{1,5})", re.ASCII)


def choose_size(size: object, *, interleave: bool) -> tuple[int, int]:
    """Return width and height in pixels for a `size` parameter, `None` meaning that it was not given.

    Raises: `Problem` 400 for another format, too few or too many pixels, or a shape beyond 1:4 and 4:1.

    >>> choose_size(None, interleave=False)
    (1280, 1280)
    >>> choose_size("1370*770", interleave=False)
    (1376, 768)
    >>> choose_size("1280x1280", interleave=False)
    Traceback (most recent call last):
    app.simulator.problems.Problem: 400 InvalidParameter: Expected format: '<width>*<height>'
    """
    if size is None:
        return _KEYWORDS["1K"]
    if not interleave and isinstance(size, str) and size in _KEYWORDS:
        return _KEYWORDS[size]
    found = _FORMAT.fullmatch(size) if isinstance(size, str) else None
    if found is None:
        raise problems.invalid("Expected format: '<width>*<height>'")
    width, height = int(found[1]), int(found[2])
    _refuse_out_of_range(width, height, max_pixels=MAX_PIXELS_INTERLEAVE if interleave else MAX_PIXELS_EDIT)
    return _rounded(width), _rounded(height)


def read_size(size: object, default: str) -> tuple[int, int]:
    """Return width and height for a `size` parameter of the families whose rules are not played in full.

    Keywords are good only where one of them is the default.

    Raises: `Problem` 400 for another format or a picture that is far too large.

    >>> read_size(None, "1024*1536"), read_size("4K", "2K"), read_size("720*1280", "2K")
    ((1024, 1536), (4096, 4096), (720, 1280))
    >>> read_size("1K", "1024*1536")
    Traceback (most recent call last):
    app.simulator.problems.Problem: 400 InvalidParameter: Expected format: '<width>*<height>'
    """
    wanted = default if size is None else size
    keywords = {**_KEYWORDS, "4K": (4096, 4096)} if default in _KEYWORDS else {}
    if isinstance(wanted, str) and wanted in keywords:
        return keywords[wanted]
    found = _FORMAT.fullmatch(wanted) if isinstance(wanted, str) else None
    if found is None:
        raise problems.invalid("Expected format: '<width>*<height>'")
    width, height = int(found[1]), int(found[2])
    if not 0 < width * height <= MAX_PIXELS_EDIT:
        raise problems.invalid(f"size error: total pixels must be at most {MAX_PIXELS_EDIT}")
    return width, height


def _refuse_out_of_range(width: int, height: int, *, max_pixels: int) -> None:
    if not MIN_PIXELS <= width * height <= max_pixels:
        raise problems.invalid(f"size error: total pixels must be between {MIN_PIXELS} and {max_pixels}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise problems.invalid("size error: the aspect ratio must be between 1:4 and 4:1")


def _rounded(side: int) -> int:
    return (side + STEP // 2) // STEP * STEP
