"""Files and usage in any answer of the upstream, found by inspecting its JSON (dashscope-api.md 4). Pure.

The path of a call does not tell the shape of its result, so everything is walked: all choices, all content, every
known key. Knows no task, no price and no link of ours.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlsplit

LINK_KEYS = ("image_url", "output_image_url", "output_vis_image_url", "result_url", "video_url")
LINK_LIST_KEYS = ("render_urls", "bg_urls", "parsing_img_url", "crop_img_url")
ITEM_LINK_KEYS = ("url", "png_url", "svg_url", "video_url", "image_url", "transcription_url")
MOST_UNITS = 10_000  # a larger count in `usage` is nonsense, not a bill
EXTENSION = re.compile(r"\.([A-Za-z0-9]{1,5})$")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file named by an answer: where its link stands in `output`, and the link, byte for byte."""

    json_path: str
    url: str


@dataclass(frozen=True, slots=True)
class Usage:
    """One counted unit of an answer. `flag` says why a person should look at it."""

    unit: str
    quantity: Decimal
    tier: str = ""
    flag: str | None = None


def find_artifacts(output: Mapping[str, Any]) -> list[Artifact]:
    """Return every file that an answer's `output` names, in the documented order.

    >>> find_artifacts({"choices": [{"message": {"content": [{"text": "a"}, {"image": "https://h/1.png"}]}}]})
    [Artifact(json_path='choices.0.message.content.1.image', url='https://h/1.png')]
    >>> find_artifacts({"results": [{"url": "https://h/1.png"}, {"code": "DataInspectionFailed"}]})
    [Artifact(json_path='results.0.url', url='https://h/1.png')]
    >>> find_artifacts({"results": {"video_url": "http://h/a.mp4"}})
    [Artifact(json_path='results.video_url', url='http://h/a.mp4')]
    """
    return [Artifact(path, url) for path, url in _links(output) if _is_link(url)]


def replace_links(output: dict[str, Any], links: Mapping[str, str]) -> None:
    """Put other links where an answer's `output` has its own, by the paths that `find_artifacts` gave.

    >>> output = {"results": [{"url": "https://h/1.png"}]}
    >>> replace_links(output, {"results.0.url": "https://ours/1.png"})
    >>> output
    {'results': [{'url': 'https://ours/1.png'}]}
    """
    for json_path, link in links.items():
        *way, last = json_path.split(".")
        here: Any = output
        for step in way:
            here = here[int(step)] if isinstance(here, list) else here[step]
        if isinstance(here, list):
            here[int(last)] = link
        else:
            here[last] = link


def find_usage(answer: Mapping[str, Any]) -> list[Usage]:
    """Return what an answer says was made. Only where `usage` does not count are the artifacts counted, and flagged.

    >>> one = {"choices": [{"message": {"content": [{"image": "https://h/1.png"}]}}]}
    >>> find_usage({"output": one, "usage": {"image_count": 1}})
    [Usage(unit='image', quantity=Decimal('1'), tier='', flag=None)]
    >>> find_usage({"output": one, "usage": {"image_count": 2}})[0].flag
    'counts_disagree'
    >>> find_usage({"output": one})
    [Usage(unit='image', quantity=Decimal('1'), tier='', flag='counted_artifacts')]
    >>> find_usage({"output": one, "usage": {"image_count": -5}})[0].flag
    'unknown_usage'
    """
    output = answer.get("output")
    output = output if isinstance(output, dict) else {}
    made = len(find_artifacts(output))
    usage = answer.get("usage")
    counted = usage.get("image_count") if isinstance(usage, dict) else None
    if type(counted) is int and 0 <= counted <= MOST_UNITS:
        agree = counted == made and _metrics_agree(output, counted)
        return [Usage("image", Decimal(counted), flag=None if agree else "counts_disagree")]
    return [Usage("image", Decimal(made), flag="unknown_usage" if usage else "counted_artifacts")]


def link_expiry(url: str) -> int | None:
    """Return the unix second at which a signed link dies, or None when it does not say (dashscope-api.md 8.2).

    >>> link_expiry("https://h/1.png?Expires=1795400000&Signature=abc%3D")
    1795400000
    >>> link_expiry("https://h/1.png") is None
    True
    """
    values = parse_qs(_split(url).query).get("Expires", [])
    return int(values[0]) if values and re.fullmatch(r"[0-9]{1,11}", values[0]) else None


def link_extension(url: str) -> str:
    """Return the extension of the file a link names, or "bin"; the bytes decide later what it really is.

    >>> link_extension("https://h/1d/x.PNG?Expires=1"), link_extension("https://h/x")
    ('png', 'bin')
    """
    found = EXTENSION.search(_split(url).path)
    return found.group(1).lower() if found else "bin"


def _split(url: str) -> SplitResult:
    """Split a link; one that is no URL has no parts, and whoever fetches it will say so."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")


def _links(output: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for i, choice in enumerate(_list(output.get("choices"))):
        message = choice.get("message") if isinstance(choice, dict) else None
        for j, item in enumerate(_list(message.get("content") if isinstance(message, dict) else None)):
            if isinstance(item, dict):
                yield f"choices.{i}.message.content.{j}.image", item.get("image")
    for key in ("results", "result"):
        value = output.get(key)
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", value.get(name)) for name in ITEM_LINK_KEYS)
        for i, item in enumerate(_list(value)):
            if isinstance(item, dict):
                yield from ((f"{key}.{i}.{name}", item.get(name)) for name in ITEM_LINK_KEYS)
    yield from ((key, output.get(key)) for key in LINK_KEYS)
    for key in LINK_LIST_KEYS:
        yield from ((f"{key}.{i}", url) for i, url in enumerate(_list(output.get(key))))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_link(url: Any) -> bool:
    return isinstance(url, str) and url.startswith(("http://", "https://"))


def _metrics_agree(output: Mapping[str, Any], counted: int) -> bool:
    metrics = output.get("task_metrics")
    return not isinstance(metrics, dict) or metrics.get("SUCCEEDED", counted) == counted
