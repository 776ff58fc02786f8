"""Which models there are, at which service paths, and what they ask and answer there. A new model is one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from app.simulator import families, wan26_image
from app.simulator.families import Family, counted, no_pictures, wan27_count
from app.simulator.tasks import IMAGE_GENERATION, Failure, Order

MULTIMODAL = "aigc/multimodal-generation/generation"
TEXT2IMAGE = "aigc/text2image/image-synthesis"
IMAGE2IMAGE = "aigc/image2image/image-synthesis"
OUT_PAINTING = "aigc/image2image/out-painting"
BACKGROUND = "aigc/background-generation/generation"
VIRTUAL_MODEL = "aigc/virtualmodel/generation"
ALBUM = "aigc/album/gen_potrait"  # the upstream's spelling
WORDART_SEMANTIC = "aigc/wordart/semantic"
WORDART_TEXTURE = "aigc/wordart/texture"
VIDEO = "aigc/video-generation/video-synthesis"
IMAGE2VIDEO = "aigc/image2video/video-synthesis"
TRANSCRIPTION = "audio/asr/transcription"

# A prompt can ask for its own failure, so that a test needs no control port.
_FAILING_WORDS = {
    "[[forbidden]]": Failure("DataInspectionFailed", "Output data may contain inappropriate content.", status=400),
    "[[broken]]": Failure("InternalError.Algo", "An error occurred in the algorithm service, please try again later."),
}


class Mode(StrEnum):
    """How a path can be called: for a task to be read later, or for an answer at once (or as a stream)."""

    ASYNC = "async"
    SYNC = "sync"


@dataclass(frozen=True, slots=True)
class Door:
    """One service path at which a model answers. `read_order` judges a call's body."""

    service: str
    modes: tuple[Mode, ...]
    read: Callable[..., Order]
    sync_not_in: tuple[str, ...] = ()  # regions

    def read_order(self, body: dict[str, Any]) -> Order:
        """Turn a body into an order. Raises: `Problem` 400 for what the upstream refuses."""
        return self.read(body, service=self.service)

    def allows(self, mode: Mode, region: str) -> bool:
        """Tell whether the path can be called so in a region."""
        return mode in self.modes and not (mode is Mode.SYNC and region in self.sync_not_in)


def planned_failure(prompt: str) -> Failure | None:
    """Return how work with this prompt must fail, or None when it may succeed."""
    return next((failure for word, failure in _FAILING_WORDS.items() if word in prompt), None)


def _at(service: str, family: Family, *modes: Mode) -> Door:
    return Door(service, modes or (Mode.ASYNC,), partial(families.read_order, family))


def _sync(family: Family) -> Door:
    return _at(MULTIMODAL, family, Mode.SYNC)


def _models(names: str, *doors: Door) -> dict[str, Mapping[str, Door]]:
    by_path: Mapping[str, Door] = {door.service: door for door in doors}
    return dict.fromkeys(names.split(), by_path)


# Asked by messages, synchronously and as a task alike.
_WAN26_T2I = Family("choices", "size", images=(0, 0), count=counted(default=4, most=4), size="1280*1280")
_WAN27 = Family("choices", "size_and_real_tokens", images=(0, 9), count=wan27_count, size="2K")
_QWEN3 = Family("untyped_choices", "in_and_out", images=(0, 3), count=counted(default=1, most=6), bills="inputs")
_KLING = Family("one_choice", "size_and_resolution", images=(0, 10), count=counted(default=1, most=9))
# Asked by messages, synchronously only.
_QWEN_TEXT = Family("counted_choices", "sides", images=(0, 0), count=counted(default=1, most=1), size="1664*928")
_QWEN2 = Family("untyped_choices", "sides", images=(0, 3), count=counted(default=1, most=6))
_QWEN_EDIT = Family("untyped_choices", "sides", images=(1, 3), count=counted(default=1, most=6))
_QWEN_EDIT_ONE = Family("untyped_choices", "sides", images=(1, 3), count=counted(default=1, most=1))
_Z_IMAGE = Family("image_and_text", "sides", images=(0, 0), size="1024*1536")
# Pictures in `results`.
_TEXT = Family("described_results", "count", ("prompt",), count=counted(default=4, most=4))
_ONE_TEXT = Family("described_results", "count", ("prompt",), count=counted(default=1, most=1), size="1664*928")
_FUSION = Family("results", "count", ("prompt", "images"), count=counted(default=4, most=4), size="1280*1280")
_EDIT = Family("results", "count", ("function", "base_image_url", "prompt"), count=counted(default=1, most=4))
_SKETCH = Family("results", "count", ("sketch_image_url", "prompt"), count=counted(default=4, most=4))
_PAINT = Family("results", "count", ("base_image_url|image_url", "mask_image_url"), count=counted(default=1, most=4))
_RESTYLE = Family("results", "count", ("image_url",))
_SCENE = Family("results", "count", ("base_image_url",), count=counted(default=1, most=4))
_MODEL_SHOT = Family(
    "results", "count", ("base_image_url|template_image_url|prompt",), count=counted(default=1, most=4)
)
_PORTRAIT = Family("results", "count", ("resources",), count=counted(default=4, most=4))
_TEXTURE = Family("results", "count", ("text|image", "prompt"), count=counted(default=4, most=4))
_SEMANTIC = Family("drawn_and_traced", "count", ("text", "prompt"), count=counted(default=4, most=4))
# A picture under a name of its own.
_TRANSLATION = Family("translated", "count", ("image_url", "target_lang"))
_FITTING = Family("image_url", "count", ("person_image_url", "top_garment_url|bottom_garment_url"))
_REFINING = Family("image_url", "count", ("person_image_url", "coarse_image_url"))
_SEGMENTATION = Family("masks", "count", ("image_url",))
_ERASING = Family("output_image_url", "count", ("image_url", "mask_url"))
_EXPANSION = Family("output_image_url", "count", ("image_url",))
_SHOES = Family("result_url", "count", ("template_image_url", "shoe_image_url"))
_POSTER = Family("posters", "count", ("title",), count=counted("generate_num", default=1, most=4, where="input"))
# Films and recordings.
_CLIP = Family("described_video", "video", ("prompt",), count=no_pictures, size="1280*720", bills="video")
_CLIP_OF = Family("described_video", "video", ("img_url",), count=no_pictures, size="1280*720", bills="video")
_FILM = Family(
    "described_video", "video_with_resolution", ("prompt",), count=no_pictures, size="1280*720", bills="video"
)
_FILM_OF = Family(
    "described_video",
    "video_with_resolution",
    ("prompt|img_url|media|first_frame_url|reference_urls|reference_video_urls",),
    count=no_pictures,
    size="1280*720",
    bills="video",
)
_FRAMES = Family("video_in_results", "filmed", ("first_frame_url",), count=no_pictures, bills="film")
_PERSON = Family("video_in_results", "filmed", ("image_url|video_url",), count=no_pictures, bills="film")
_FACE = Family("video_in_results", "filmed_square", ("image_url", "audio_url"), count=no_pictures, bills="film")
_DUBBED = Family("video_in_results", "filmed", ("video_url",), count=no_pictures, bills="film")
_EMOJI = Family("video", "filmed_square", ("image_url", "driven_id"), count=no_pictures, bills="film")
_HEARD = Family("transcriptions", "heard", ("file_urls",), count=no_pictures, bills="sound")
_HEARD_ONE = Family("one_transcription", "heard", ("file_urls|file_url",), count=no_pictures, bills="sound")

MODELS: Mapping[str, Mapping[str, Door]] = {
    **_models(
        wan26_image.MODEL,
        Door(IMAGE_GENERATION, (Mode.ASYNC,), wan26_image.read_order),
        Door(MULTIMODAL, (Mode.SYNC,), wan26_image.read_order, sync_not_in=("eu-central-1",)),
    ),
    **_models("wan2.6-t2i", _at(IMAGE_GENERATION, _WAN26_T2I), _sync(_WAN26_T2I)),
    **_models("wan2.7-image wan2.7-image-pro", _at(IMAGE_GENERATION, _WAN27), _sync(_WAN27)),
    **_models("qwen-image-3.0 qwen-image-3.0-pro", _at(IMAGE_GENERATION, _QWEN3), _sync(_QWEN3)),
    **_models("kling/kling-v3-image-generation kling/kling-v3-omni-image-generation", _at(IMAGE_GENERATION, _KLING)),
    **_models("qwen-image qwen-image-plus", _at(TEXT2IMAGE, _ONE_TEXT), _sync(_QWEN_TEXT)),
    **_models("qwen-image-max", _sync(_QWEN_TEXT)),
    **_models("qwen-image-2.0 qwen-image-2.0-pro", _sync(_QWEN2)),
    **_models("qwen-image-edit-plus qwen-image-edit-max", _sync(_QWEN_EDIT)),
    **_models("qwen-image-edit", _sync(_QWEN_EDIT_ONE)),
    **_models("z-image-turbo", _sync(_Z_IMAGE)),
    **_models("wan2.2-t2i-plus wan2.2-t2i-flash", _at(TEXT2IMAGE, _TEXT, Mode.ASYNC, Mode.SYNC)),
    **_models(
        "wanx-v1 wanx2.0-t2i-turbo wanx2.1-t2i-plus wanx2.1-t2i-turbo wan2.1-t2i-plus wan2.1-t2i-turbo "
        "wan2.5-t2i-preview flux-schnell flux-dev flux-merged stable-diffusion-xl stable-diffusion-v1.5",
        _at(TEXT2IMAGE, _TEXT),
    ),
    **_models("wanx-poster-generation-v1", _at(TEXT2IMAGE, _POSTER)),
    **_models("wanx-style-repaint-v1 wanx-style-cosplay-v1", _at(IMAGE_GENERATION, _RESTYLE)),
    **_models("wan2.5-i2i-preview", _at(IMAGE2IMAGE, _FUSION)),
    **_models("wanx2.1-imageedit", _at(IMAGE2IMAGE, _EDIT)),
    **_models("wanx-sketch-to-image-lite", _at(IMAGE2IMAGE, _SKETCH)),
    **_models("wanx-x-painting", _at(IMAGE2IMAGE, _PAINT)),
    **_models("qwen-mt-image", _at(IMAGE2IMAGE, _TRANSLATION)),
    **_models("aitryon aitryon-plus", _at(IMAGE2IMAGE, _FITTING)),
    **_models("aitryon-refiner", _at(IMAGE2IMAGE, _REFINING)),
    **_models("image-instance-segmentation", _at(IMAGE2IMAGE, _SEGMENTATION)),
    **_models("image-erase-completion", _at(IMAGE2IMAGE, _ERASING)),
    **_models("image-out-painting", _at(OUT_PAINTING, _EXPANSION)),
    **_models("wanx-background-generation-v2", _at(BACKGROUND, _SCENE)),
    **_models("wanx-virtualmodel virtualmodel-v2", _at(VIRTUAL_MODEL, _MODEL_SHOT)),
    **_models("shoemodel-v1", _at(VIRTUAL_MODEL, _SHOES)),
    **_models("facechain-generation", _at(ALBUM, _PORTRAIT)),
    **_models("wordart-semantic", _at(WORDART_SEMANTIC, _SEMANTIC)),
    **_models("wordart-texture", _at(WORDART_TEXTURE, _TEXTURE)),
    **_models(
        "wanx2.1-t2v-turbo wanx2.1-t2v-plus wan2.1-t2v-turbo wan2.1-t2v-plus wan2.2-t2v-plus wan2.5-t2v-preview "
        "wanx2.1-vace-plus wan2.1-vace-plus",
        _at(VIDEO, _CLIP),
    ),
    **_models(
        "wanx2.1-i2v-turbo wanx2.1-i2v-plus wan2.1-i2v-turbo wan2.1-i2v-plus wan2.2-i2v-flash wan2.2-i2v-plus "
        "wan2.5-i2v-preview",
        _at(VIDEO, _CLIP_OF),
    ),
    **_models("wan2.6-t2v wan2.7-t2v wan3.0-video happyhorse-1.1-t2v", _at(VIDEO, _FILM)),
    **_models(
        "wan2.6-i2v wan2.6-r2v wan2.7-i2v wan2.7-r2v happyhorse-1.1-i2v happyhorse-1.1-r2v", _at(VIDEO, _FILM_OF)
    ),
    **_models("wanx2.1-kf2v-plus wan2.1-kf2v-plus wan2.2-kf2v-flash", _at(IMAGE2VIDEO, _FRAMES)),
    **_models("wan2.2-animate-move wan2.2-animate-mix animate-anyone-gen2", _at(IMAGE2VIDEO, _PERSON)),
    **_models("wan2.2-s2v emo-v1 liveportrait", _at(IMAGE2VIDEO, _FACE)),
    **_models("videoretalk video-style-transform", _at(IMAGE2VIDEO, _DUBBED)),
    **_models("emoji-v1", _at(IMAGE2VIDEO, _EMOJI)),
    **_models("paraformer-v1 paraformer-v2 fun-asr sensevoice-v1", _at(TRANSCRIPTION, _HEARD)),
    **_models("qwen3-asr-flash-filetrans", _at(TRANSCRIPTION, _HEARD_ONE)),
}
