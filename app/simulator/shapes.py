"""Where each family of models puts its results, and how it counts them (pure): dashscope-api.md 4 as functions.

A shape says which files one success has and how their links stand in `output`; a usage is the `usage` block. Both are
known by name, and the catalogue chooses them model by model: the path of a call does not tell the shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from app.simulator.tasks import Order

Json = dict[str, Any]
Links = Sequence[str]

INPUT_VIDEO_SECONDS = 2  # how long every reference video is; nothing is ever fetched
TOKENS_PER_IMAGE = 200
_LOST_PART = {"code": "DataInspectionFailed", "message": "Output data may contain inappropriate content."}


def _made(order: Order) -> int:
    return order.made_count


def _one(order: Order) -> int:
    return 1


def _inputs(order: Order) -> int:
    return len(order.inputs)


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape of result: `times` the `endings` are its files, `place` puts their links into an `output`."""

    place: Callable[[Order, Links], Json]
    endings: tuple[str, ...] = ("png",)
    times: Callable[[Order], int] = _made
    metrics: Callable[[Order], tuple[int, int]] | None = None  # how many parts were asked for, how many come out

    def files(self, order: Order) -> Sequence[str]:
        """Return the endings of all files, in the order in which `place` takes their links."""
        return self.endings * self.times(order)


def output_of(order: Order, links: Links) -> Json:
    """Return what a success has in its `output`, apart from the facts that every task has."""
    shape = SHAPES[order.shape]
    output = shape.place(order, links)
    if shape.metrics:
        output["task_metrics"] = task_metrics(*shape.metrics(order))
    return output


def metrics_before_success(order: Order, *, failed: bool) -> Json:
    """Return the `task_metrics` of a task that runs or has failed, as far as its family has them."""
    metrics = SHAPES[order.shape].metrics
    if metrics is None:
        return {}
    total, _ = metrics(order)
    return {"task_metrics": {"TOTAL": total, "SUCCEEDED": 0, "FAILED": total if failed else 0}}


def task_metrics(total: int, succeeded: int) -> Json:
    """Count the parts of something that has ended.

    >>> task_metrics(4, 3)
    {'TOTAL': 4, 'SUCCEEDED': 3, 'FAILED': 1}
    """
    return {"TOTAL": total, "SUCCEEDED": succeeded, "FAILED": total - succeeded}


def usage_of(order: Order) -> Json:
    """Return the `usage` block of a success."""
    return USAGES[order.usage](order)


def step_text(order: Order, number: int) -> str:
    """Return the text before picture `number` (from 1) of an interleaved result, streamed or not."""
    return f"Step {number} of {order.made_count}: {order.prompt[:60]}"


# Shapes.


def _choices(order: Order, links: Links) -> Json:
    """One choice for each picture."""
    return _chosen([[{"type": "image", "image": link}] for link in links])


def _untyped_choices(order: Order, links: Links) -> Json:
    return _chosen([[{"image": link}] for link in links])


def _counted_choices(order: Order, links: Links) -> Json:
    """With a count of the parts that is spelt in the singular."""
    return {**_untyped_choices(order, links), "task_metric": task_metrics(order.image_count, len(links))}


def _one_choice(order: Order, links: Links) -> Json:
    """All pictures in a single choice."""
    return _chosen([[{"type": "image", "image": link} for link in links]])


def _image_and_text(order: Order, links: Links) -> Json:
    """A picture, and the prompt that it was really made from."""
    return _chosen([[*({"image": link} for link in links), {"text": order.prompt}]])


def _interleaved(order: Order, links: Links) -> Json:
    """One choice in which text and picture alternate."""
    content: list[Json] = []
    for number, link in enumerate(links, start=1):
        content += [{"type": "text", "text": step_text(order, number)}, {"type": "image", "image": link}]
    return _chosen([content])


def _chosen(contents: Sequence[list[Json]]) -> Json:
    return {"finished": True, "choices": [_choice(content) for content in contents]}


def _choice(content: list[Json]) -> Json:
    return {"finish_reason": "stop", "message": {"role": "assistant", "content": content}}


def _results(order: Order, links: Links) -> Json:
    """One result for each picture; those that were lost tell why instead."""
    return {"results": [*({"url": link} for link in links), *_lost_parts(order)]}


def _described_results(order: Order, links: Links) -> Json:
    made = [{**_prompts(order), "url": link} for link in links]
    return {"results": [*made, *_lost_parts(order)]}


def _drawn_and_traced(order: Order, links: Links) -> Json:
    pairs = zip(links[::2], links[1::2], strict=True)
    return {"results": [*({"png_url": png, "svg_url": svg} for png, svg in pairs), *_lost_parts(order)]}


def _lost_parts(order: Order) -> list[Json]:
    return [dict(_LOST_PART)] * (order.image_count - order.made_count)


def _posters(order: Order, links: Links) -> Json:
    half = len(links) // 2
    return {"render_urls": list(links[:half]), "bg_urls": list(links[half:])}


def _under(*keys: str) -> Callable[[Order, Links], Json]:
    """Make a shape of plain keys, one for each link."""
    return lambda order, links: dict(zip(keys, links, strict=True))


def _described_video(order: Order, links: Links) -> Json:
    return {**_prompts(order), "video_url": links[0]}


def _video_in_results(order: Order, links: Links) -> Json:
    """An object called results."""
    return {"results": {"video_url": links[0]}}


def _transcriptions(order: Order, links: Links) -> Json:
    pairs = zip(order.inputs, links, strict=True)
    results = [{"file_url": given, "transcription_url": link, "subtask_status": "SUCCEEDED"} for given, link in pairs]
    return {"results": results}


def _one_transcription(order: Order, links: Links) -> Json:
    return {"result": {"transcription_url": links[0]}}


def _prompts(order: Order) -> Json:
    return {"orig_prompt": order.prompt, "actual_prompt": f"{order.prompt}, in soft morning light"}


def _picture_metrics(order: Order) -> tuple[int, int]:
    return order.image_count, order.made_count


def _recording_metrics(order: Order) -> tuple[int, int]:
    return len(order.inputs), len(order.inputs)


SHAPES = {
    "choices": Shape(_choices),
    "untyped_choices": Shape(_untyped_choices),
    "counted_choices": Shape(_counted_choices),
    "one_choice": Shape(_one_choice),
    "image_and_text": Shape(_image_and_text),
    "interleaved": Shape(_interleaved),
    "results": Shape(_results, metrics=_picture_metrics),
    "described_results": Shape(_described_results, metrics=_picture_metrics),
    "drawn_and_traced": Shape(_drawn_and_traced, endings=("png", "svg"), metrics=_picture_metrics),
    "posters": Shape(_posters, endings=("png", "png")),
    "image_url": Shape(_under("image_url")),
    "translated": Shape(_under("image_url"), endings=("jpg",)),
    "output_image_url": Shape(_under("output_image_url")),
    "masks": Shape(_under("output_image_url", "output_vis_image_url"), endings=("png", "png")),
    "result_url": Shape(_under("result_url")),
    "video": Shape(_under("video_url"), endings=("mp4",), times=_one),
    "described_video": Shape(_described_video, endings=("mp4",), times=_one),
    "video_in_results": Shape(_video_in_results, endings=("mp4",), times=_one),
    "transcriptions": Shape(_transcriptions, endings=("json",), times=_inputs, metrics=_recording_metrics),
    "one_transcription": Shape(_one_transcription, endings=("json",), times=_one),
}


# Usages.


def token_usage(order: Order, *, images: int, tokens_out: int) -> Json:
    """Count pictures and tokens up to some point of an answer; before the first picture there is no size.

    Tokens are 0 when editing; interleaved they are counted (here: pretended) but never billed.
    """
    tokens_in = len(order.prompt) if order.interleave else 0
    return {
        "total_tokens": tokens_in + tokens_out,
        "image_count": images,
        "output_tokens": tokens_out,
        "size": order.size if images else "0*0",
        "input_tokens": tokens_in,
    }


def _size_and_tokens(order: Order) -> Json:
    tokens = TOKENS_PER_IMAGE * order.made_count if order.interleave else 0
    return token_usage(order, images=order.made_count, tokens_out=tokens)


def _size_and_real_tokens(order: Order) -> Json:
    """Tokens that are not nought although no text was asked for; nor are they billed."""
    tokens_in, tokens_out = len(order.prompt) + 10, TOKENS_PER_IMAGE * order.made_count
    tokens = {"input_tokens": tokens_in, "output_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
    return {"image_count": order.made_count, "size": order.size, **tokens}


def _size(order: Order) -> Json:
    return {"image_count": order.made_count, "size": order.size}


def _size_and_resolution(order: Order) -> Json:
    return {"image_count": order.made_count, "size": order.size, "SR": "1K" if order.width <= 1024 else "2K"}


def _sides(order: Order) -> Json:
    return {"width": order.width, "height": order.height, "image_count": order.made_count}


def _in_and_out(order: Order) -> Json:
    """There is no `image_count` here."""
    return {
        "output_width": order.width,
        "output_height": order.height,
        "input_image_count": order.billed_inputs,
        "input_image_type": "qima_input_1k",
        "output_image_count": order.made_count,
        "output_image_type": f"qima_output_{'1k' if order.width * order.height <= 1536 * 1536 else '2k'}",
    }


def _count(order: Order) -> Json:
    return {"image_count": order.made_count}


def _video(order: Order) -> Json:
    return {"video_duration": int(order.seconds), "video_ratio": order.size, "video_count": 1}


def _video_with_resolution(order: Order) -> Json:
    given = INPUT_VIDEO_SECONDS * len(order.inputs)
    divisor = gcd(order.width, order.height)
    return {
        "duration": int(order.seconds),
        "input_video_duration": given,
        "output_video_duration": int(order.seconds) - given,
        "SR": min(order.width, order.height),
        "size": order.size,
        "video_count": 1,
        "fps": 24,
        "ratio": f"{order.width // divisor}:{order.height // divisor}",
    }


def _filmed(ratio: str) -> Callable[[Order], Json]:
    return lambda order: {"video_duration": float(order.seconds), "video_ratio": ratio}


def _heard(order: Order) -> Json:
    return {"duration": int(order.seconds)}


USAGES: dict[str, Callable[[Order], Json]] = {
    "size_and_tokens": _size_and_tokens,
    "size_and_real_tokens": _size_and_real_tokens,
    "size": _size,
    "size_and_resolution": _size_and_resolution,
    "sides": _sides,
    "in_and_out": _in_and_out,
    "count": _count,
    "video": _video,
    "video_with_resolution": _video_with_resolution,
    "filmed": _filmed("standard"),
    "filmed_square": _filmed("1:1"),
    "heard": _heard,
}
