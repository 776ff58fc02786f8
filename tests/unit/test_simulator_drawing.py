"""The result files are real pictures, and always the same ones."""

import io

import pytest
from PIL import Image

from app.simulator.drawing import draw_png


@pytest.mark.parametrize(
    "prompt", ["a paper boat", "", "纸船 🚤", "nul \x00 and tab \t", "w" * 2000, "line\nbreaks\n" * 50]
)
def test_any_prompt_can_be_drawn(prompt: str) -> None:
    with Image.open(io.BytesIO(draw_png(768, 768, prompt=prompt, caption="t-1 · 0"))) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("PNG", (768, 768))


@pytest.mark.parametrize(("width", "height"), [(1536, 384), (384, 1536)])
def test_long_shapes_have_the_asked_size(width: int, height: int) -> None:
    with Image.open(io.BytesIO(draw_png(width, height, prompt="a boat", caption="t-1 · 0"))) as picture:
        assert picture.size == (width, height)


def test_the_same_picture_is_drawn_again_and_another_caption_makes_another() -> None:
    first = draw_png(768, 768, prompt="a boat", caption="t-1 · 0")
    draw_png.cache_clear()
    assert draw_png(768, 768, prompt="a boat", caption="t-1 · 0") == first
    assert draw_png(768, 768, prompt="a boat", caption="t-1 · 1") != first
