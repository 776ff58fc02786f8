"""OpenAI's image calls in DashScope's words: every family by its form, and what cannot be said is refused."""

import json
from typing import Any

import pytest

from app.api.openai_bodies import IMAGE_MAX_BYTES, Asking, Wanted, asking_of, data_uri, read_wanted, translate
from app.delivery.inputs import DATA_URI_MAX_CHARS
from app.errors import InvalidParameter
from app.routing.catalogue import load_catalogue
from app.routing.ways import Asked, find_way, serves_path

OURS = load_catalogue(None)
IMAGES, MULTIMODAL = "aigc/image-generation/generation", "aigc/multimodal-generation/generation"
TEXT2IMAGE, IMAGE2IMAGE = "aigc/text2image/image-synthesis", "aigc/image2image/image-synthesis"
PICTURE, OTHER = "data:image/png;base64,iVBO", "data:image/jpeg;base64,/9j/"
ASKED_BY_TEXT = [
    model
    for model, offer in OURS.models.items()
    if asking_of(model, offer.path or offer.sync_path or "") in (Asking.MESSAGES, Asking.PROMPT)
]
ASKED = {"model": "z-image-turbo", "prompt": "a boat"}


def said(model: str, images: tuple[str, ...] = (), **wanted: Any) -> tuple[str, dict[str, Any]]:
    """Translate a call; return its path and what its body says."""
    translated = translate(read_wanted({"model": model, "prompt": "a boat", **wanted}, images), OURS.find(model))
    assert json.loads(translated.body) == translated.fields
    assert translated.fields["model"] == model
    return translated.path, translated.fields


def message(*images: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"text": "a boat"}, *({"image": image} for image in images)]}]}


@pytest.mark.parametrize(
    ("model", "path", "parameters"),
    [
        ("wan2.6-image", IMAGES, {"enable_interleave": True, "max_images": 2}),
        ("wan2.6-t2i", IMAGES, {"n": 2}),
        ("wan2.7-image-pro", IMAGES, {"n": 2}),
        ("qwen-image-3.0", IMAGES, {"n": 2}),
        ("kling/kling-v3-image-generation", IMAGES, {"n": 2}),
        ("qwen-image-max", MULTIMODAL, {"n": 2}),
        ("qwen-image-2.0-pro", MULTIMODAL, {"n": 2}),
        ("qwen-image-edit-plus", MULTIMODAL, {"n": 2}),
        ("z-image-turbo", MULTIMODAL, {"n": 2}),
        ("a-model-of-tomorrow", MULTIMODAL, {"n": 2}),
    ],
)
def test_a_family_that_takes_messages_is_asked_by_one_text(model: str, path: str, parameters: dict[str, Any]) -> None:
    assert said(model, n=2) == (path, {"model": model, "input": message(), "parameters": parameters})


@pytest.mark.parametrize(
    "model",
    [
        *("qwen-image", "qwen-image-plus", "wan2.5-t2i-preview", "wan2.2-t2i-flash", "wan2.1-t2i-plus"),
        *("wanx2.1-t2i-turbo", "wanx-v1", "flux-schnell", "stable-diffusion-xl"),
    ],
)
def test_a_family_that_takes_a_prompt_is_asked_by_its_asynchronous_path(model: str) -> None:
    fields = {"model": model, "input": {"prompt": "a boat"}, "parameters": {"n": 1}}
    assert said(model) == (TEXT2IMAGE, fields)


@pytest.mark.parametrize("model", ["wan2.6-image", "wan2.7-image", "qwen-image-3.0", "qwen-image-edit-max"])
def test_images_stand_in_the_message_behind_the_text_in_their_order(model: str) -> None:
    _, fields = said(model, (PICTURE, OTHER), n=2)
    assert fields == {"model": model, "input": message(PICTURE, OTHER), "parameters": {"n": 2}}


def test_one_family_takes_a_prompt_and_images_apart() -> None:
    path, fields = said("wan2.5-i2i-preview", (PICTURE, OTHER), negative_prompt="rain")
    assert path == IMAGE2IMAGE
    assert fields["input"] == {"prompt": "a boat", "images": [PICTURE, OTHER], "negative_prompt": "rain"}


@pytest.mark.parametrize(
    ("model", "images"),
    [
        *(("qwen-image", (PICTURE,)), ("wan2.2-t2i-flash", (PICTURE,)), ("wan2.5-i2i-preview", ())),
        *(("wanx-style-repaint-v1", (PICTURE,)), ("wanx-poster-generation-v1", ()), ("wanx2.1-imageedit", (PICTURE,))),
        *(("vidu/vidu-image_reference2image", ()), ("wan2.6-t2v", ()), ("paraformer-v2", ()), ("aitryon", (PICTURE,))),
    ],
)
def test_a_model_that_cannot_be_asked_so_is_refused(model: str, images: tuple[str, ...]) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        said(model, images)
    assert refusal.value.param == "model"


@pytest.mark.parametrize("model", ASKED_BY_TEXT)
def test_a_call_goes_to_a_path_of_its_model_and_is_durable_where_the_region_has_tasks(model: str) -> None:
    offer, (path, _) = OURS.models[model], said(model)
    assert serves_path(offer, path)
    for region in offer.regions:
        way = find_way(offer, region, asked=Asked(path), durable=True)
        assert way is not None
        assert way.mode == ("relay" if offer.path is None else "durable")


def test_where_the_model_takes_a_negative_prompt_follows_its_form() -> None:
    _, by_message = said("wan2.6-t2i", negative_prompt="rain")
    _, by_prompt = said("qwen-image", negative_prompt="rain")
    assert (by_message["parameters"], by_message["input"]) == ({"n": 1, "negative_prompt": "rain"}, message())
    assert by_prompt["input"] == {"prompt": "a boat", "negative_prompt": "rain"}
    assert by_prompt["parameters"] == {"n": 1}


def test_dashscopes_own_parameters_are_passed_on_and_openais_hints_are_not() -> None:
    own = {"prompt_extend": False, "seed": 0, "thinking_mode": True, "enable_sequential": True, "watermark": False}
    hints = {"user": "u", "quality": "hd", "style": "vivid", "moderation": "low", "background": "opaque"}
    harmless = {"stream": False, "partial_images": 0, "output_format": "png", "output_compression": 80}
    _, fields = said("wan2.7-image", **own, **hints, **harmless)
    assert fields["parameters"] == {"n": 1, **own}


def test_equal_calls_have_equal_bodies_whatever_their_order() -> None:
    wanted = {"model": "z-image-turbo", "prompt": "ein Boot, 小船", "seed": 7, "size": "1024x1536", "watermark": True}
    there = translate(read_wanted(wanted), OURS.find("z-image-turbo")).body
    back = translate(read_wanted(dict(reversed(wanted.items()))), OURS.find("z-image-turbo")).body
    assert there == back
    assert "小船".encode() in there


@pytest.mark.parametrize(
    ("size", "meant"),
    [("1024x1536", "1024*1536"), ("1664*928", "1664*928"), ("2K", "2K"), ("auto", None), (None, None)],
)
def test_a_size_is_written_as_dashscope_writes_it(size: str | None, meant: str | None) -> None:
    assert read_wanted({**ASKED, "size": size}).size == meant


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"size": size}
            for size in ("1024", "0x512", "1024x", "1024X512", "999999x1", "1x1 ", "３x３", 1024, ["1x1"])
        ),
        *({"n": n} for n in (0, -1, 101, "2", 1.0, True, [1])),
        *({"prompt": prompt} for prompt in ("", None, 7)),
        *({"model": model} for model in ("", None, 7, "m" * 201)),
        *({"response_format": wrong} for wrong in ("png", 1, ["url"])),
        *({"stream": True}, {"partial_images": 2}, {"background": "transparent"}, {"output_format": "webp"}),
        *({"mask": "m"}, {"image": "i"}, {"parameters": {}}),
    ],
)
def test_what_cannot_be_meant_or_done_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        read_wanted({**ASKED, **wrong})
    assert refusal.value.param == next(iter(wrong))


def test_a_name_that_is_unfit_to_be_said_back_is_not() -> None:
    with pytest.raises(InvalidParameter) as refusal:
        read_wanted({**ASKED, "<script>": 1})
    assert refusal.value.param is None
    assert "script" not in refusal.value.message


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        *((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff\xe0", "jpeg"), (b"BM", "bmp")),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "webp"),
    ],
)
def test_the_largest_image_of_each_kind_is_a_data_uri_that_the_upstream_takes(head: bytes, kind: str) -> None:
    text = data_uri(head.ljust(IMAGE_MAX_BYTES, b"\0"))
    assert text.startswith(f"data:image/{kind};base64,")
    assert DATA_URI_MAX_CHARS - 4 <= len(text) <= DATA_URI_MAX_CHARS


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"<svg>", b"B", b"RIFF\x00\x00\x00\x00WAVE"])
def test_what_is_no_image_of_a_known_kind_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidParameter):
        data_uri(content)


def test_an_unlisted_models_form_may_be_told_by_its_name() -> None:
    with pytest.raises(InvalidParameter):
        translate(Wanted("vidu/of-tomorrow", "a boat"), None)
