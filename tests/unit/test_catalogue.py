"""The catalogue and the regions: what is offered where is data, ours and the operator's."""

import re
from pathlib import Path

import pytest

from app.errors import InvalidParameter, NotReady
from app.routing.catalogue import Limits, Offer, load_catalogue, most_units, unit_of, unlisted_offer
from app.routing.regions import default_base_url, load_regions
from tests.house.source import ROOT

OURS = load_catalogue(None)
EVERY_OFFER = {**OURS.models, **OURS.patterns}
BEIJING, SINGAPORE = "cn-beijing", "ap-southeast-1"

TEXT2IMAGE = "aigc/text2image/image-synthesis"
IMAGE2IMAGE = "aigc/image2image/image-synthesis"
MULTIMODAL = "aigc/multimodal-generation/generation"
IMAGES = "aigc/image-generation/generation"
VIDEO = "aigc/video-generation/video-synthesis"
IMAGE2VIDEO = "aigc/image2video/video-synthesis"


def found(model: str) -> Offer:
    offer = OURS.find(model)
    assert offer is not None, model
    return offer


# --- ours ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "path", "sync_path", "unit"),
    [
        ("wan2.6-image", IMAGES, MULTIMODAL, "image"),
        ("wan2.6-t2i", IMAGES, MULTIMODAL, "image"),
        ("wan2.7-image-pro", IMAGES, MULTIMODAL, "image"),
        ("qwen-image-3.0", IMAGES, MULTIMODAL, "image"),
        ("qwen-image", TEXT2IMAGE, MULTIMODAL, "image"),
        ("qwen-image-max", None, MULTIMODAL, "image"),
        ("qwen-image-2.0-pro", None, MULTIMODAL, "image"),
        ("z-image-turbo", None, MULTIMODAL, "image"),
        ("kling/kling-v3-omni-image-generation", IMAGES, None, "image"),
        ("wanx-style-repaint-v1", IMAGES, None, "image"),
        ("wan2.2-t2i-flash", TEXT2IMAGE, TEXT2IMAGE, "image"),
        ("wanx2.1-t2i-turbo", TEXT2IMAGE, None, "image"),
        ("stable-diffusion-xl", TEXT2IMAGE, None, "image"),
        ("wan2.5-i2i-preview", IMAGE2IMAGE, None, "image"),
        ("qwen-mt-image", IMAGE2IMAGE, None, "image"),
        ("aitryon-refiner", IMAGE2IMAGE, None, "image"),
        ("image-out-painting", "aigc/image2image/out-painting", None, "image"),
        ("wanx-background-generation-v2", "aigc/background-generation/generation/", None, "image"),
        ("shoemodel-v1", "aigc/virtualmodel/generation", None, "image"),
        ("facechain-generation", "aigc/album/gen_potrait", None, "image"),
        ("wordart-semantic", "aigc/wordart/semantic", None, "image"),
        ("wordart-texture", "aigc/wordart/texture", None, "image"),
        ("wan2.6-t2v", VIDEO, None, "video_second"),
        ("wan2.2-i2v-plus", VIDEO, None, "video_second"),
        ("wan2.6-r2v-flash", VIDEO, None, "video_second"),
        ("wan3.0-video", VIDEO, None, "video_second"),
        ("wan2.1-vace-plus", VIDEO, None, "video_second"),
        ("happyhorse-1.1-t2v", VIDEO, None, "video_second"),
        ("kling/kling-v3-video-generation", VIDEO, None, "video_second"),
        ("wan2.2-kf2v-flash", IMAGE2VIDEO, None, "video_second"),
        ("wan2.2-s2v", IMAGE2VIDEO, None, "video_second"),
        ("wan2.2-animate-mix", IMAGE2VIDEO, None, "video_second"),
        ("emoji-v1", IMAGE2VIDEO, None, "video_second"),
        ("paraformer-v2", "audio/asr/transcription", None, "audio_second"),
        ("qwen3-asr-flash-filetrans", "audio/asr/transcription", None, "audio_second"),
    ],
)
def test_each_family_is_called_by_its_path_and_counted_in_its_unit(
    model: str, path: str | None, sync_path: str | None, unit: str
) -> None:
    offer = found(model)
    assert (offer.path, offer.sync_path, unit_of(OURS, model)) == (path, sync_path, unit)


@pytest.mark.parametrize(
    ("model", "region", "rps", "running"),
    [
        ("wan2.6-t2i", BEIJING, 1, 5),
        ("wan2.6-t2i", SINGAPORE, 5, 5),
        ("wan2.7-image", SINGAPORE, 5, 5),
        ("wanx-v1", BEIJING, 2, 1),
        ("image-out-painting", BEIJING, 2, 10),
        ("aitryon-plus", BEIJING, 10, 5),
        ("qwen-mt-image", BEIJING, 1, 2),
        ("wan2.6-i2v", BEIJING, 5, 5),
        ("wan2.2-t2v-plus", BEIJING, 2, 2),
        ("wanx2.1-t2v-turbo", BEIJING, 2, 2),
        ("wan2.2-s2v", BEIJING, 5, 1),
        ("happyhorse-1.1-t2v", SINGAPORE, 10, 5),
    ],
)
def test_limits_are_those_of_the_upstreams_page(model: str, region: str, rps: float, running: int) -> None:
    limits = found(model).limits_in(region)
    assert limits == Limits(rps=rps, running=running)


def test_two_a_minute_is_a_rate_below_one_a_second() -> None:
    limits = found("qwen-image-max").limits_in(BEIJING)
    assert limits is not None
    assert limits.rps * 60 == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("name", [name for name, offer in EVERY_OFFER.items() if offer.path is None])
def test_where_no_tasks_run_nothing_is_kept_waiting_for_a_place(name: str) -> None:
    assert {limits.buffer for limits in EVERY_OFFER[name].regions.values()} == {0}


@pytest.mark.parametrize("name", EVERY_OFFER)
def test_a_model_is_offered_in_regions_that_exist(name: str) -> None:
    offer = EVERY_OFFER[name]
    assert offer.regions
    assert {*offer.regions, *offer.async_only_in, *offer.sync_only_in} <= set(load_regions())
    assert offer.elsewhere is None


def test_a_model_of_one_region_is_not_offered_in_another() -> None:
    assert found("wanx2.1-t2i-plus").limits_in(SINGAPORE) is None
    assert found("wan2.1-t2i-plus").limits_in(BEIJING) is None
    assert found("wan2.1-t2i-plus").async_path_in(BEIJING) is None


def test_a_name_wins_over_a_pattern() -> None:
    assert found("kling/kling-v3-image-generation").path == IMAGES
    assert found("kling/kling-v4").path == VIDEO


@pytest.mark.parametrize(
    "model", ["wan2.6-image ", "wan-t2v\n", "wan\u0430-t2v", "wan2.6-text", "", "*-kf2v-*", "w" * 200]
)
def test_what_is_no_name_of_a_model_matches_nothing(model: str) -> None:
    assert OURS.find(model) is None


def test_a_pattern_knows_no_endless_names() -> None:
    assert found("wan2.6-t2v".ljust(100, "x")).path == VIDEO
    assert OURS.find("wan2.6-t2v".ljust(101, "x")) is None


# --- the operator's ------------------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    path = folder / "more.toml"
    path.write_text(text)
    return path


MODEL = '[models."{}"]\npath = "a/b"\nunit = "image"\nmost = [{{ parameter = "n", default = 2 }}]\n'
REGIONS = '[models."{}".regions]\ncn-beijing = {{ rps = 1, running = 1 }}\n'
FAMILY = '[[families]]\nmodels = [{}]\npath = "a/b"\nregions.cn-beijing = {{ rps = 1, running = 1 }}\n'


def test_the_operators_file_adds_and_replaces_models(tmp_path: Path) -> None:
    text = "".join(MODEL.format(name) + REGIONS.format(name) for name in ("mine", "wan2.6-image"))
    catalogue = load_catalogue(write(tmp_path, text))
    assert {name: catalogue.models[name].path for name in ("mine", "wan2.6-image")} == dict.fromkeys(
        ("mine", "wan2.6-image"), "a/b"
    )
    assert catalogue.find("theirs") is None
    assert catalogue.find("wan2.6-t2i") == OURS.find("wan2.6-t2i")


def test_a_new_model_needs_one_line_of_a_family(tmp_path: Path) -> None:
    catalogue = load_catalogue(write(tmp_path, FAMILY.format('"mine", "mine-*"')))
    offers = [catalogue.find(name) for name in ("mine", "mine-2")]
    assert [offer and (offer.path, offer.unit, most_units(offer, {})) for offer in offers] == [("a/b", "image", 1)] * 2


def test_the_operators_patterns_are_tried_before_ours(tmp_path: Path) -> None:
    catalogue = load_catalogue(write(tmp_path, FAMILY.format('"wan2.6-*", "wan*-i2v*"')))
    assert [catalogue.find(name).path for name in ("wan2.6-t2v", "wan9-i2v", "wan9-t2v")] == ["a/b", "a/b", VIDEO]  # type: ignore[union-attr]
    assert catalogue.find("wan2.6-image") == OURS.find("wan2.6-image")


def test_the_manuals_example_of_a_family_is_one(tmp_path: Path) -> None:
    manual = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(\[\[families\]\]\n.*?)```", manual, re.DOTALL)
    offer = load_catalogue(write(tmp_path, example)).find("wan2.8-image-pro")
    assert offer is not None
    assert offer.async_path_in("eu-central-1") == IMAGES
    assert (offer.sync_path_in(BEIJING), offer.sync_path_in("eu-central-1")) == (MULTIMODAL, None)
    assert most_units(offer, {}) == 4


@pytest.mark.parametrize(
    "text",
    [
        "not toml [",
        "[models.x]\npath = 7",
        MODEL.format("x"),
        MODEL.format("x") + "[models.x.regions]\na = { rps = 0, running = 1 }",
        MODEL.format("x") + "[models.x.regions]\na = { rps = 1, running = 1, colour = 1 }",
        FAMILY.format('"x", "y", "x"'),
        MODEL.format("x") + REGIONS.format("x") + FAMILY.format('"x"'),
        FAMILY.format(""),
        (MODEL.format("x") + REGIONS.format("x")).replace('path = "a/b"\n', ""),
        (MODEL.format("x") + REGIONS.format("x")).replace("a/b", "../tasks/1/cancel"),
        (MODEL.format("x") + REGIONS.format("x")).replace("a/b", "https://h.example/a"),
    ],
    ids=[
        *("toml", "types", "no regions", "no rate", "unknown word", "twice", "twice over", "no name", "no path"),
        *("a way out", "a host"),
    ],
)
def test_a_file_that_cannot_be_used_says_so_at_the_start(tmp_path: Path, text: str) -> None:
    with pytest.raises(NotReady, match="E05"):
        load_catalogue(write(tmp_path, text))


def test_a_missing_file_says_so_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="E05"):
        load_catalogue(tmp_path / "nothing.toml")


# --- in no catalogue -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "a/../b",
        "../tasks/1/cancel",
        "a/./b",
        "a//b",
        "a/b?x=1",
        "a/b#x",
        "a%2fb",
        "http://h/a",
        "a\\b",
        "a/b\n",
    ],
)
def test_an_unlisted_model_can_be_called_at_service_paths_only(path: str) -> None:
    with pytest.raises(InvalidParameter, match="url error"):
        unlisted_offer(path, is_async=True)


def test_an_unlisted_model_is_called_one_at_a_time() -> None:
    assert unlisted_offer("a/b/", is_async=False).limits_in("anywhere") == Limits(rps=1, running=1)


# --- the most a request can make -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [None, 0, -1, 1001, 10**30, 1.0, "2", True, [], {}])
def test_nonsense_in_a_request_counts_as_the_most_a_model_makes_by_itself(n: object) -> None:
    assert most_units(found("wan2.6-image"), {"n": n}) == 4


@pytest.mark.parametrize(
    ("model", "parameters", "most"),
    [
        ("wan2.7-image", {}, 4),
        ("wan2.7-image", {"enable_sequential": True}, 12),
        ("wan2.7-image", {"enable_sequential": True, "n": 3}, 3),
        ("qwen-image-2.0", {}, 1),
        ("qwen-image-2.0", {"n": 6}, 6),
        ("wan2.6-t2v", {"duration": 10}, 10),
        ("wan2.6-r2v", {"duration": 10}, 30),
        ("paraformer-v2", {"n": 5}, 3600),
    ],
)
def test_the_most_follows_from_the_request_where_the_request_says_it(
    model: str, parameters: dict[str, object], most: int
) -> None:
    assert most_units(found(model), parameters) == most


# --- regions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("region", "shared", "with_workspace"),
    [
        (BEIJING, "dashscope.aliyuncs.com", "ws-1.cn-beijing.maas.aliyuncs.com"),
        (SINGAPORE, "dashscope-intl.aliyuncs.com", "ws-1.ap-southeast-1.maas.aliyuncs.com"),
        ("us-east-1", "dashscope-us.aliyuncs.com", "ws-1.us-east-1.maas.aliyuncs.com"),
        ("cn-hongkong", "cn-hongkong.dashscope.aliyuncs.com", "ws-1.cn-hongkong.maas.aliyuncs.com"),
        ("eu-central-1", None, "ws-1.eu-central-1.maas.aliyuncs.com"),
        ("ap-northeast-1", None, "ws-1.ap-northeast-1.maas.aliyuncs.com"),
        ("finance", "dashscope-finance.aliyuncs.com", "dashscope-finance.aliyuncs.com"),
        ("qianwen", "maas.qianwenaiapi.com", "maas.qianwenaiapi.com"),
        ("my-own-region", None, None),
    ],
)
def test_a_base_url_is_proposed_from_the_table(region: str, shared: str | None, with_workspace: str | None) -> None:
    assert default_base_url(region, None) == (shared and f"https://{shared}/api/v1")
    assert default_base_url(region, "ws-1") == (with_workspace and f"https://{with_workspace}/api/v1")


@pytest.mark.parametrize("workspace", ["", "evil.example/", "a.b", "a@b", "a:80", "-a", "a b", "a\n", "x" * 64])
def test_what_is_no_workspace_id_becomes_no_host(workspace: str) -> None:
    assert default_base_url(BEIJING, workspace) is None
