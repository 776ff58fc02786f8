"""How the families of models read a call (pure): lightly, as far as their pages are documented.

A family is data: which inputs must be there, how many results, which size, what is counted, which shapes answer. Only
`wan2.6-image` has a reader of its own. Input files are never fetched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from zlib import crc32

from app.simulator import problems
from app.simulator.reading import read_content, read_object, refuse_images, whole_number
from app.simulator.shapes import INPUT_VIDEO_SECONDS
from app.simulator.sizes import read_size
from app.simulator.tasks import Order

Json = dict[str, Any]
Count = Callable[[Json, Json], int]  # of `input` and `parameters`

PROMPT_LENGTH = 2000  # a data URI may stand in for a prompt
MOST_INPUTS = 100
MOST_VIDEO_SECONDS = 60
_PROMPT_KEYS = ("prompt", "text", "title")
_RESOLUTIONS = {"480P": "832*480", "720P": "1280*720", "1080P": "1920*1080"}
_INPUT_KEYS = {"video": ("reference_video_urls", "reference_urls"), "sound": ("file_urls", "file_url")}


def counted(name: str = "n", *, default: int, most: int, where: str = "parameters") -> Count:
    """Let a field say how many pictures are made."""

    def count(given: Json, parameters: Json) -> int:
        fields = parameters if where == "parameters" else given
        if most == 1 and fields.get(name) not in (None, 1):
            raise problems.invalid("num_images_per_prompt must be 1")
        return whole_number(fields, name, default=default, low=1, high=most)

    return count


def one_picture(given: Json, parameters: Json) -> int:
    """Make a single picture, whatever is asked."""
    return 1


def no_pictures(given: Json, parameters: Json) -> int:
    """Count no pictures: what is made is billed otherwise."""
    return 0


def wan27_count(given: Json, parameters: Json) -> int:
    """Make up to 4 pictures, or up to 12 in sequence; without `n` it is the most in both cases."""
    most = 12 if parameters.get("enable_sequential") is True else 4
    return whole_number(parameters, "n", default=most, low=1, high=most)


@dataclass(frozen=True, slots=True)
class Family:
    """What a family asks for and how it answers.

    `images` are the fewest and the most input pictures of a family that is asked by messages, None for the others.
    `needs` names inputs that must be there, where `a|b` means one of them. `bills` says what is counted besides
    pictures: `inputs`, `video`, `film` (whose length the model decides) or `sound`.
    """

    shape: str
    usage: str
    needs: tuple[str, ...] = ()
    images: tuple[int, int] | None = None
    count: Count = one_picture
    size: str = "1024*1024"
    bills: str = ""


def read_order(family: Family, body: Json, *, service: str) -> Order:
    """Turn the JSON body of a call at a service path into an order. Raises: `Problem` 400 for what is refused."""
    given, parameters = read_object(body, "input"), read_object(body, "parameters")
    images: list[Any] = []
    if family.images is None:
        prompt = _read_needs(family, given)
    else:
        prompt, images = read_content(given)
        refuse_images(images, low=family.images[0], high=family.images[1])
    width, height = read_size(_wanted_size(family, parameters), family.size)
    inputs = _read_inputs(family, given)
    return Order(
        model=str(body["model"]),
        prompt=prompt,
        width=width,
        height=height,
        image_count=family.count(given, parameters),
        service=service,
        shape=family.shape,
        usage=family.usage,
        seconds=_seconds(family, parameters, prompt=prompt, inputs=inputs),
        inputs=inputs,
        billed_inputs=len(images) if family.bills == "inputs" else 0,
    )


def _read_needs(family: Family, given: Json) -> str:
    """Find every input that is needed; return what a result is drawn from: the prompt, or else the first input."""
    found = []
    for need in family.needs:
        values = [given[name] for name in need.split("|") if given.get(name)]
        if not values:
            raise problems.invalid(f"{need.replace('|', ' or ')} is required")
        found.append(values[0])
    texts = [given[name] for name in _PROMPT_KEYS if isinstance(given.get(name), str)]
    return str((texts or _flat(found) or [""])[0])[:PROMPT_LENGTH]


def _flat(values: list[Any]) -> list[Any]:
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _read_inputs(family: Family, given: Json) -> tuple[str, ...]:
    """Return the files that the answer has to speak of: recordings, or reference videos whose seconds are billed."""
    names = _INPUT_KEYS.get(family.bills, ())
    links = _flat([given[name] for name in names if given.get(name)])
    if not all(isinstance(link, str) for link in links) or len(links) > MOST_INPUTS:
        raise problems.invalid(f"{' or '.join(names)} must be a list of at most {MOST_INPUTS} URLs")
    return tuple(links)


def _wanted_size(family: Family, parameters: Json) -> object:
    if family.bills == "video" and parameters.get("size") is None:
        resolution = parameters.get("resolution")
        return _RESOLUTIONS.get(resolution) if isinstance(resolution, str) else None
    return parameters.get("size") if family.bills in ("", "inputs", "video") else None


def _seconds(family: Family, parameters: Json, *, prompt: str, inputs: tuple[str, ...]) -> Decimal:
    """Return the billed seconds; where the model or the input decides them, a hash does, so that it is repeatable."""
    match family.bills:
        case "video":
            made = whole_number(parameters, "duration", default=5, low=1, high=MOST_VIDEO_SECONDS)
            return Decimal(made + INPUT_VIDEO_SECONDS * len(inputs))
        case "film":
            return Decimal(300 + crc32(prompt.encode()) % 2000) / 100
        case "sound":
            return Decimal(sum(1 + crc32(link.encode()) % 60 for link in inputs))
    return Decimal(0)
