"""OpenAI's image calls in DashScope's words, and DashScope's answers in OpenAI's. Pure: knows no HTTP and no task.

How a model is asked for pictures is read off the paths it is called by (dashscope-api.md 4); what they do not tell
stands in a table beside them. How many pictures and which sizes a model takes is the upstream's to judge.
"""

import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from app.delivery.download import kind_of
from app.delivery.inputs import DATA_URI_MAX_CHARS
from app.errors import InvalidParameter
from app.lib.multipart import Field
from app.routing.catalogue import Offer
from app.upstream.results import find_artifacts

MODEL_MAX_CHARS = 200
MOST_ASKED = 100  # each model's own limit is the upstream's to tell
LONGEST_HEAD = len("data:image/jpeg;base64,")
IMAGE_MAX_BYTES = (DATA_URI_MAX_CHARS - LONGEST_HEAD) // 4 * 3
BMP = "image/bmp"
NOT_HERE = "This model is not served in OpenAI's shape; call it at its path under /api/v1/services/."
NO_IMAGES = "This model takes no images."
ONLY_IMAGES = "This model works on images; call /images/edits."
NOT_KNOWN = "This route does not know one of the parameters."
_SIZE = re.compile(r"([1-9][0-9]{0,4})[x*]([1-9][0-9]{0,4})")
_SIZE_WORDS = ("1K", "2K", "4K")  # DashScope's own, of some models
_PLAIN_NAME = re.compile(r"[a-z0-9_]{1,40}")


class Asking(StrEnum):
    """How a family is asked: by a message with one text and perhaps images, by a prompt, or by both apart."""

    MESSAGES = "messages"
    PROMPT = "prompt"
    PROMPT_AND_IMAGES = "prompt and images"


MULTIMODAL = "aigc/multimodal-generation/generation"
BY_PATH = {
    MULTIMODAL: Asking.MESSAGES,
    "aigc/image-generation/generation": Asking.MESSAGES,
    "aigc/text2image/image-synthesis": Asking.PROMPT,
}
# Where the path does not tell; None: they want what a prompt and images cannot say, or nobody knows what.
BY_MODEL: Mapping[str, Asking | None] = {
    "wan2.5-i2i-*": Asking.PROMPT_AND_IMAGES,
    "wanx-style-*": None,
    "wanx-poster-*": None,
    "wanx-ast": None,
    "vidu/*": None,
}
# Without an image they draw only in the mode that mixes texts and images, where `max_images` says how many at most.
INTERLEAVE_WITHOUT_IMAGES = ("wan2.6-image",)

# Of OpenAI's parameters, what only hints and has no counterpart: it changes nothing that the caller gets.
IGNORED = frozenset({"user", "quality", "style", "moderation", "output_compression", "input_fidelity"})
# What would change what the caller gets, and cannot be done; with the values that ask for nothing.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "stream": (False,),
    "partial_images": (0,),
    "background": ("auto", "opaque"),
    "output_format": ("png",),
}
NO_MASK = "mask cannot be used: the upstream marks what to change in another way. Describe it in the prompt."
READ = frozenset({"model", "prompt", "n", "size", "response_format"})
# DashScope's own, taken beside OpenAI's and passed on, in this order.
EXTRAS = (
    *("negative_prompt", "prompt_extend", "prompt_extend_mode", "seed"),
    *("thinking_mode", "enable_sequential", "watermark"),
)
WHOLE_NUMBERS = frozenset({"n", "seed", "partial_images"})
SWITCHES = frozenset({"stream", "prompt_extend", "thinking_mode", "enable_sequential", "watermark"})


@dataclass(frozen=True, slots=True)
class Wanted:
    """An OpenAI call as it was understood. `images` are data URIs, in their order."""

    model: str
    prompt: str
    n: int = 1
    size: str | None = None
    as_base64: bool = False
    extras: Mapping[str, Any] | None = None
    images: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Translated:
    """The same call in DashScope's words. Equal calls have equal bodies."""

    path: str
    body: bytes
    fields: dict[str, Any]

    @property
    def parameters(self) -> dict[str, Any]:
        """How many and which, apart from what is asked."""
        parameters: dict[str, Any] = self.fields["parameters"]
        return parameters


def read_form(given: Sequence[Field]) -> dict[str, Any]:
    """Return the fields of a form as JSON would have them; an empty one was not given.

    Raises:
        InvalidParameter: a field is given twice, or is no number or no truth value where one belongs.

    >>> read_form([Field("n", "2"), Field("watermark", "false"), Field("prompt", "2"), Field("size", "")])
    {'n': 2, 'watermark': False, 'prompt': '2'}
    >>> read_form([Field("n", "two")])
    Traceback (most recent call last):
    app.errors.InvalidParameter: n must be a whole number.
    """
    fields: dict[str, Any] = {}
    for name, text in given:
        if name in fields:
            raise InvalidParameter("A field of the form is given twice.", param=_told_name(name))
        if text:
            fields[name] = _typed(name, text)
    return fields


def read_wanted(fields: Mapping[str, Any], images: Sequence[str] = ()) -> Wanted:
    """Understand an OpenAI call: what is null was not given, what cannot be done is refused.

    Raises:
        InvalidParameter: with the name of the parameter.

    >>> read_wanted({"model": "z-image-turbo", "prompt": "a boat", "size": "1024x1536", "n": None, "quality": "hd"})
    Wanted(model='z-image-turbo', prompt='a boat', n=1, size='1024*1536', as_base64=False, extras={}, images=())
    >>> for wrong in ({"n": 0}, {"size": "big"}, {"stream": True}, {"response_format": "gif"}, {"input": {}}):
    ...     try:
    ...         read_wanted({"model": "z-image-turbo", "prompt": "a boat", **wrong})
    ...     except InvalidParameter as error:
    ...         print(error.param, "-", error)
    n - n must be a whole number from 1 to 100.
    size - size must be WIDTHxHEIGHT or auto.
    stream - stream has a value that this route does not support.
    response_format - response_format must be url or b64_json.
    input - This route does not know one of the parameters.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    _refuse_what_cannot_be_done(given)
    model, prompt, n = given.get("model"), given.get("prompt"), given.get("n", 1)
    if not isinstance(model, str) or not 0 < len(model) <= MODEL_MAX_CHARS:
        raise InvalidParameter("model must be the name of a model.", param="model")
    if not isinstance(prompt, str) or not prompt:
        raise InvalidParameter("prompt must be a text.", param="prompt")
    if type(n) is not int or not 1 <= n <= MOST_ASKED:
        raise InvalidParameter(f"n must be a whole number from 1 to {MOST_ASKED}.", param="n")
    response_format = given.get("response_format", "url")
    if response_format not in ("url", "b64_json"):
        raise InvalidParameter("response_format must be url or b64_json.", param="response_format")
    return Wanted(
        model=model,
        prompt=prompt,
        n=n,
        size=_size(given.get("size", "auto")),
        as_base64=response_format == "b64_json",
        extras={name: given[name] for name in EXTRAS if name in given},
        images=images,
    )


def translate(wanted: Wanted, offer: Offer | None) -> Translated:
    """Say a call in DashScope's words; a model without an offer is asked as the newest ones are.

    The path of the asynchronous create comes first, so that the call can run as a task.

    Raises:
        InvalidParameter: the model cannot be asked so.

    >>> from app.routing.catalogue import load_catalogue
    >>> def show(model, **wanted):
    ...     translated = translate(Wanted(model, "a boat", **wanted), load_catalogue(None).find(model))
    ...     print(translated.path, translated.body.decode(), sep="\\n")
    >>> show("qwen-image-max", n=1, size="1664*928")
    aigc/multimodal-generation/generation
    {"model":"qwen-image-max","input":{"messages":[{"role":"user","content":[{"text":"a boat"}]}]},"parameters":{"n":1,"size":"1664*928"}}
    >>> show("qwen-image", n=1, extras={"negative_prompt": "rain", "seed": 7})
    aigc/text2image/image-synthesis
    {"model":"qwen-image","input":{"prompt":"a boat","negative_prompt":"rain"},"parameters":{"n":1,"seed":7}}
    >>> translate(Wanted("wan2.6-image", "a boat", n=3), load_catalogue(None).find("wan2.6-image")).parameters
    {'enable_interleave': True, 'max_images': 3}
    >>> show("wan2.5-i2i-preview", n=2, images=["data:image/png;base64,iVBO"])
    aigc/image2image/image-synthesis
    {"model":"wan2.5-i2i-preview","input":{"prompt":"a boat","images":["data:image/png;base64,iVBO"]},"parameters":{"n":2}}
    >>> show("qwen-image", images=["data:image/png;base64,iVBO"])
    Traceback (most recent call last):
    app.errors.InvalidParameter: This model takes no images.
    """  # noqa: E501 -- a body is one line
    path = ((offer.path or offer.sync_path) if offer is not None else None) or MULTIMODAL
    asking, extras = asking_of(wanted.model, path), dict(wanted.extras or {})
    parameters: dict[str, Any] = _how_many(wanted) | ({"size": wanted.size} if wanted.size else {})
    match asking, bool(wanted.images):
        case Asking.MESSAGES, _:
            content = [{"text": wanted.prompt}, *({"image": image} for image in wanted.images)]
            asked: dict[str, Any] = {"messages": [{"role": "user", "content": content}]}
        case (Asking.PROMPT, False) | (Asking.PROMPT_AND_IMAGES, True):
            asked = {"prompt": wanted.prompt}
            asked |= {"images": list(wanted.images)} if wanted.images else {}
            asked |= {name: extras.pop(name) for name in ("negative_prompt",) if name in extras}
        case Asking.PROMPT, True:
            raise InvalidParameter(NO_IMAGES, param="model")
        case Asking.PROMPT_AND_IMAGES, False:
            raise InvalidParameter(ONLY_IMAGES, param="model")
        case _:
            raise InvalidParameter(NOT_HERE, param="model")
    fields = {"model": wanted.model, "input": asked, "parameters": parameters | extras}
    return Translated(path, json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(), fields)


def asking_of(model: str, path: str) -> Asking | None:
    """Return how a model at a path is asked for images; None: not by a prompt and images.

    >>> asking_of("wan2.6-t2i", "aigc/image-generation/generation")
    <Asking.MESSAGES: 'messages'>
    >>> asking_of("wanx-style-repaint-v1", "aigc/image-generation/generation") is None
    True
    >>> asking_of("wan2.6-t2v", "aigc/video-generation/video-synthesis") is None
    True
    """
    for pattern, asking in BY_MODEL.items():
        if fnmatchcase(model, pattern):
            return asking
    return BY_PATH.get(path.strip("/"))


def data_uri(content: bytes) -> str:
    """Write an image as text; what it is, its first bytes tell.

    Raises:
        InvalidParameter: it is none of the kinds that the upstream takes.

    >>> data_uri(bytes.fromhex("89504e470d0a1a0a"))
    'data:image/png;base64,iVBORw0KGgo='
    >>> data_uri(b"GIF89a")
    Traceback (most recent call last):
    app.errors.InvalidParameter: An image must be a PNG, JPEG, WEBP or BMP file.
    """
    kind = kind_of(content[:16])
    content_type = kind.content_type if kind else BMP if content.startswith(b"BM") else None
    if content_type is None:
        raise InvalidParameter("An image must be a PNG, JPEG, WEBP or BMP file.", param="image")
    return f"data:{content_type};base64,{b64encode(content).decode()}"


def tell_images(output: Mapping[str, Any], *, created: int, files: Mapping[str, bytes] | None = None) -> bytes:
    """Write what was made in OpenAI's shape: links, or with `files` (by their place in `output`) the images.

    >>> output = {"results": [{"url": "https://h/1.png", "actual_prompt": "a red boat"}, {"code": "InternalError"}]}
    >>> tell_images(output, created=1795400000)
    b'{"created":1795400000,"data":[{"url":"https://h/1.png","revised_prompt":"a red boat"}]}'
    >>> tell_images({"results": [{"url": "https://h/1.png"}]}, created=1, files={"results.0.url": b"png"})
    b'{"created":1,"data":[{"b64_json":"cG5n"}]}'
    """
    data = []
    for artifact in find_artifacts(output):
        file = files[artifact.json_path] if files is not None else None
        image = {"url": artifact.url} if file is None else {"b64_json": b64encode(file).decode()}
        data.append(image | _revised(output, artifact.json_path))
    text = json.dumps({"created": created, "data": data}, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def _typed(name: str, text: str) -> Any:
    if name in WHOLE_NUMBERS:
        if not re.fullmatch(r"-?[0-9]{1,19}", text):
            raise InvalidParameter(f"{name} must be a whole number.", param=name)
        return int(text)
    if name in SWITCHES:
        if text.lower() not in ("true", "false"):
            raise InvalidParameter(f"{name} must be true or false.", param=name)
        return text.lower() == "true"
    return text


def _refuse_what_cannot_be_done(given: Mapping[str, Any]) -> None:
    if "mask" in given:
        raise InvalidParameter(NO_MASK, param="mask")
    for name, harmless in REFUSED.items():
        if name in given and given[name] not in harmless:
            raise InvalidParameter(f"{name} has a value that this route does not support.", param=name)
    # what is misspelt or another model's would be paid for without having been heard
    unknown = given.keys() - READ - IGNORED - REFUSED.keys() - set(EXTRAS)
    if unknown:
        raise InvalidParameter(NOT_KNOWN, param=_told_name(min(unknown)))


def _told_name(name: str) -> str | None:
    """Return a name that the caller chose, if it is fit to be said back."""
    return name if _PLAIN_NAME.fullmatch(name) else None


def _size(size: Any) -> str | None:
    if size == "auto":
        return None
    if isinstance(size, str) and size in _SIZE_WORDS:
        return size
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is None:
        raise InvalidParameter("size must be WIDTHxHEIGHT or auto.", param="size")
    return f"{found[1]}*{found[2]}"


def _how_many(wanted: Wanted) -> dict[str, Any]:
    """Say how many images: always, because the upstream's own default may be four."""
    interleaves = any(fnmatchcase(wanted.model, pattern) for pattern in INTERLEAVE_WITHOUT_IMAGES)
    if interleaves and not wanted.images:
        return {"enable_interleave": True, "max_images": wanted.n}
    return {"n": wanted.n}


def _revised(output: Mapping[str, Any], json_path: str) -> dict[str, str]:
    """Return the prompt that an image was really drawn from, where it is told."""
    match json_path.split("."):
        case ["results", place, _] if isinstance(output.get("results"), list):
            actual = output["results"][int(place)].get("actual_prompt")
            return {"revised_prompt": actual} if isinstance(actual, str) and actual else {}
    return {}
