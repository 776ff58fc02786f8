"""Files and usage in any answer of the upstream, found by inspecting its JSON (dashscope-api.md 4). Pure.

The path of a call does not tell the shape of its result, so everything is walked: all choices, all content, every
known key. Knows no task, no price and no link of ours.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from types import NoneType
from typing import Any, TypeGuard
from urllib.parse import SplitResult, parse_qs, urlsplit

LINK_KEYS = ("image_url", "output_image_url", "output_vis_image_url", "result_url", "video_url")
LINK_LIST_KEYS = ("render_urls", "bg_urls", "parsing_img_url", "crop_img_url")
ITEM_LINK_KEYS = ("url", "png_url", "svg_url", "video_url", "image_url", "transcription_url")
IMAGE_COUNT_KEYS = ("image_count", "output_image_count")
VIDEO_KEYS = frozenset({"SR", "output_video_duration", "video_count"})  # beside `duration`, which recordings have too
# Files that show the same result once more: the posters' backgrounds, a mask laid over its picture, the cut-out.
SHOWN_WITH = {"bg_urls": "render_urls", "output_vis_image_url": "output_image_url", "crop_img_url": "parsing_img_url"}
LOOKS_AT_INPUTS = frozenset({"parsing_img_url", "crop_img_url", "is_face", "check_pass"})
MOST_UNITS = 10_000  # a larger count in `usage` is nonsense, not a bill
MOST_SECONDS = 5_000_000  # a hundred recordings of half a day, the most one call can name
KINDS = {"image": "image", "video_second": "video", "audio_second": "transcript"}  # what each unit is made as
TIER = re.compile(r"[A-Za-z0-9_.:*+-]{0,40}")
EXTENSION = re.compile(r"\.([A-Za-z0-9]{1,5})$")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file named by an answer: where its link stands in `output`, and the link, byte for byte."""

    json_path: str
    url: str


@dataclass(frozen=True, slots=True)
class Usage:
    """One counted unit of an answer. `flag` says why a person should look at it.

    Units that are billed: image, input_image, video_second, audio_second. Files counted for want of a `usage` are
    image, video, transcript: of a video or a recording nobody told the seconds.
    """

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
    """Return what an answer, or an event of a stream, says was made: one line per unit.

    Only where `usage` says nothing are the files counted. Flags: `counted_artifacts`, there was no `usage`;
    `unknown_usage`, there was one that we cannot read, or not wholly; `counts_disagree`, it names another number than
    there are files.

    >>> one = {"choices": [{"message": {"content": [{"image": "https://h/1.png"}]}}]}
    >>> find_usage({"output": one, "usage": {"image_count": 1}})
    [Usage(unit='image', quantity=Decimal('1'), tier='', flag=None)]
    >>> find_usage({"output": {"video_url": "https://h/1.mp4"}, "usage": {"duration": 5, "SR": 720}})
    [Usage(unit='video_second', quantity=Decimal('5'), tier='720', flag=None)]
    >>> find_usage({"output": one, "usage": {"image_count": 2}})[0].flag
    'counts_disagree'
    >>> find_usage({"output": one})
    [Usage(unit='image', quantity=Decimal('1'), tier='', flag='counted_artifacts')]
    >>> find_usage({"output": one, "usage": {"image_count": -5}})[0].flag
    'unknown_usage'
    """
    output = answer.get("output")
    output = output if isinstance(output, dict) else {}
    made, usage = _count_made(output), answer.get("usage")
    lines = _reported(output, usage, made=made) if isinstance(usage, dict) else []
    if not lines:
        return _counted(made, flag="unknown_usage" if usage else "counted_artifacts")
    if not _agree(output, lines[0], made=made):
        lines[0] = replace(lines[0], flag=lines[0].flag or "counts_disagree")
    return lines


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


def _reported(output: Mapping[str, Any], usage: Mapping[str, Any], *, made: Mapping[str, int]) -> list[Usage]:
    """Return what a `usage` block says in any of the documented ways; nothing when it says it in none of them."""
    if any(usage.get(key) is not None for key in IMAGE_COUNT_KEYS):
        return _images(usage)
    if usage.get("duration") is not None:
        if made["video"] or not VIDEO_KEYS.isdisjoint(usage):
            return _seconds("video_second", usage["duration"], tier=usage.get("SR"))
        if made["transcript"] or _is_transcription(output):
            return _seconds("audio_second", usage["duration"], tier=None)
    if usage.get("video_duration") is not None:
        return _seconds("video_second", usage["video_duration"], tier=usage.get("video_ratio"))
    return []


def _images(usage: Mapping[str, Any]) -> list[Usage]:
    """Read images: `image_count`, or the pair of input and output that qwen-image-3.0 bills."""
    count = next(usage[key] for key in IMAGE_COUNT_KEYS if usage.get(key) is not None)
    if not _is_count(count):
        return []
    lines = [_line("image", Decimal(count), tier=usage.get("output_image_type", usage.get("SR")))]
    inputs = usage.get("input_image_count") if "output_image_count" in usage else None
    if _is_count(inputs) and inputs:
        lines.append(_line("input_image", Decimal(inputs), tier=usage.get("input_image_type")))
    elif inputs is not None and not _is_count(inputs):
        lines[0] = replace(lines[0], flag="unknown_usage")
    return lines


def _seconds(unit: str, value: Any, *, tier: Any) -> list[Usage]:
    seconds = _number(value)
    return [_line(unit, seconds, tier=tier)] if seconds is not None else []


def _line(unit: str, quantity: Decimal, *, tier: Any) -> Usage:
    """Make a line; a tier that no price could name is left out, and flagged."""
    text = "" if tier is None else str(tier)
    if type(tier) not in (str, int, NoneType) or TIER.fullmatch(text) is None:
        return Usage(unit, quantity, flag="unknown_usage")
    return Usage(unit, quantity, tier=text)


def _counted(made: Mapping[str, int], *, flag: str) -> list[Usage]:
    """Return the files themselves as lines, and where there are none a line that says so: never silently nothing."""
    lines = [Usage(kind, Decimal(count), flag=flag) for kind, count in made.items() if count]
    return lines or [Usage("image", Decimal(0), flag=flag)]


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MOST_UNITS


def _number(value: Any) -> Decimal | None:
    """Return a quantity as it was written, or None for one that cannot be: not finite, negative, absurd, no number."""
    if type(value) not in (int, float) or not 0 <= value <= MOST_SECONDS:  # NaN is not within anything
        return None
    return Decimal(str(value))


def _count_made(output: Mapping[str, Any]) -> dict[str, int]:
    """Count what was made, by kind. Several files may be one result: a word in PNG and SVG, a mask and its preview."""
    results = {_result(artifact.json_path): _kind(artifact.json_path) for artifact in find_artifacts(output)}
    return {kind: list(results.values()).count(kind) for kind in KINDS.values()}


def _result(json_path: str) -> str:
    """Return what a file belongs to: files of one result have the same.

    >>> [_result(path) for path in ("results.0.svg_url", "output_vis_image_url", "bg_urls.1", "video_url")]
    ['results.0', 'output_image_url', 'render_urls.1', 'video_url']
    """
    name, _, rest = json_path.partition(".")
    if name in SHOWN_WITH:
        return ".".join(filter(None, (SHOWN_WITH[name], rest)))
    return json_path.rpartition(".")[0] if name in ("results", "result") else json_path


def _kind(json_path: str) -> str:
    last = json_path.rpartition(".")[2]
    return {"video_url": "video", "transcription_url": "transcript"}.get(last, "image")


def _is_transcription(output: Mapping[str, Any]) -> bool:
    """Tell a transcription of which nothing came out by the marks of its parts."""
    return any(isinstance(item, dict) and "subtask_status" in item for item in _list(output.get("results")))


def _agree(output: Mapping[str, Any], line: Usage, *, made: Mapping[str, int]) -> bool:
    """Tell whether the number of files and the upstream's own count of parts bear out what is billed.

    A look at pictures (try-on parsing, face detection) is billed by its inputs: its files prove nothing.
    """
    if line.unit == "image" and not LOOKS_AT_INPUTS.isdisjoint(output):
        return True
    metrics = output.get("task_metrics")
    succeeded = metrics.get("SUCCEEDED") if isinstance(metrics, dict) else None
    files = made[KINDS[line.unit]]
    billed = line.quantity == files if line.unit == "image" else (line.quantity > 0) == (files > 0)
    return billed and succeeded in (None, files)
