"""The size rules of the simulated `wan2.6-image`."""

import pytest

from app.simulator.problems import Problem
from app.simulator.sizes import choose_size


@pytest.mark.parametrize(
    ("size", "interleave", "expected"),
    [
        (None, False, (1280, 1280)),
        (None, True, (1280, 1280)),
        ("1K", False, (1280, 1280)),
        ("2K", False, (2048, 2048)),
        ("720*1280", False, (720, 1280)),
        ("1344*576", True, (1344, 576)),
        ("768*768", False, (768, 768)),
        ("1370*770", False, (1376, 768)),
        ("1536*384", False, (1536, 384)),
        ("2048*2048", False, (2048, 2048)),
    ],
)
def test_a_good_size_is_rounded_to_multiples_of_sixteen(
    size: str | None, interleave: bool, expected: tuple[int, int]
) -> None:
    assert choose_size(size, interleave=interleave) == expected


@pytest.mark.parametrize("size", ["1280x1280", "1280", "1280*", "*", "", "-1280*1280", "１２８０*1280", 1280, ["1K"]])
def test_another_format_is_refused_in_the_upstreams_words(size: object) -> None:
    with pytest.raises(Problem) as refusal:
        choose_size(size, interleave=False)
    assert (refusal.value.status, refusal.value.code) == (400, "InvalidParameter")
    assert refusal.value.message == "Expected format: '<width>*<height>'"


@pytest.mark.parametrize(
    ("size", "interleave"),
    [("767*768", False), ("2049*2048", False), ("1281*1280", True), ("3000*400", False), ("0*0", False)],
)
def test_too_few_or_too_many_pixels_or_a_long_shape_are_refused(size: str, interleave: bool) -> None:
    with pytest.raises(Problem, match="size error"):
        choose_size(size, interleave=interleave)


def test_keywords_belong_to_editing_only() -> None:
    with pytest.raises(Problem, match="Expected format"):
        choose_size("1K", interleave=True)
