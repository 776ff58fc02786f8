"""Result files: real PNGs behind links that die, refuse HEAD, and must be used byte for byte."""

from __future__ import annotations

import hashlib
import io
from urllib.parse import parse_qs, urlsplit

import httpx
from PIL import Image

from app.simulator import BEIJING, Simulator
from tests.contract.conftest import UpstreamCaller

DAY_SECONDS = 24 * 60 * 60


async def finished_links(sim: Simulator, upstream: UpstreamCaller, **parameters: object) -> list[str]:
    task_id = await upstream.create(**parameters)
    sim.advance(1)
    return await upstream.links(task_id)


def is_refusal(answer: httpx.Response, code: str) -> bool:
    return (
        answer.status_code == 403
        and answer.headers["content-type"] == "application/xml"
        and f"<Code>{code}</Code>" in answer.text
    )


async def test_a_file_is_a_png_of_the_size_that_was_told(
    sim: Simulator, upstream: UpstreamCaller, http: httpx.AsyncClient
) -> None:
    [link] = await finished_links(sim, upstream, size="1370*770")
    answer = await http.get(link)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert int(answer.headers["content-length"]) == len(answer.content)
    with Image.open(io.BytesIO(answer.content)) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("PNG", (1376, 768))


async def test_the_truth_knows_every_files_hash(
    sim: Simulator, upstream: UpstreamCaller, http: httpx.AsyncClient
) -> None:
    links = await finished_links(sim, upstream, n=4, size="768*768")
    files = [(await http.get(link)).content for link in links]
    [task] = sim.truth.tasks
    truth = [(picture.sha256, picture.size_bytes) for picture in task.pictures]
    assert truth == [(hashlib.sha256(content).hexdigest(), len(content)) for content in files]
    assert len(set(truth)) == 4


async def test_links_lead_to_the_host_that_was_asked_and_stay_the_same(
    sim: Simulator, upstream: UpstreamCaller
) -> None:
    links = await finished_links(sim, upstream, n=2)
    [task] = sim.truth.tasks
    assert {urlsplit(link).netloc for link in links} == {sim.file_host}
    assert await upstream.links(task.id) == links


async def test_head_is_refused(sim: Simulator, upstream: UpstreamCaller, http: httpx.AsyncClient) -> None:
    [link] = await finished_links(sim, upstream)
    assert (await http.head(link)).status_code == 403
    assert (await http.get(link)).status_code == 200


async def test_a_link_expires_a_day_after_its_file_was_made(
    sim: Simulator, upstream: UpstreamCaller, http: httpx.AsyncClient
) -> None:
    [link] = await finished_links(sim, upstream)
    expires = int(parse_qs(urlsplit(link).query)["Expires"][0])
    [task] = sim.truth.tasks
    assert task.ended_at is not None
    assert expires == int(task.ended_at + DAY_SECONDS)
    sim.advance(expires - sim.truth.clock.now() - 1)
    assert (await http.get(link)).status_code == 200
    sim.advance(1)
    assert is_refusal(await http.get(link), "AccessDenied")


async def test_a_decoded_and_re_encoded_link_opens_nothing(
    sim: Simulator, upstream: UpstreamCaller, http: httpx.AsyncClient
) -> None:
    [link] = await finished_links(sim, upstream)
    assert "%2F" in link
    for changed in (link.replace("%2F", "/"), link.replace("%2F", "%2f"), link.replace("%3D", "=")):
        assert is_refusal(await http.get(changed), "SignatureDoesNotMatch")


async def test_a_link_without_signature_or_with_anothers_opens_nothing(
    sim: Simulator, upstream: UpstreamCaller, http: httpx.AsyncClient
) -> None:
    first, second = await finished_links(sim, upstream, n=2)
    bare = first.partition("?")[0]
    for changed in (bare, f"{bare}?{second.partition('?')[2]}"):
        assert is_refusal(await http.get(changed), "SignatureDoesNotMatch")


async def test_a_forgotten_file_is_not_found(sim: Simulator, upstream: UpstreamCaller, http: httpx.AsyncClient) -> None:
    [link] = await finished_links(sim, upstream)
    sim.reset()
    answer = await http.get(link)
    assert answer.status_code == 404
    assert "<Code>NoSuchKey</Code>" in answer.text


async def test_reading_files_changes_no_bill(sim: Simulator, upstream: UpstreamCaller, http: httpx.AsyncClient) -> None:
    links = await finished_links(sim, upstream, n=3, size="768*768")
    assert sim.truth.bill()[BEIJING] == {"wan2.6-image": 3}
    for link in [*links, *links]:
        assert (await http.get(link)).status_code == 200
    assert sim.truth.bill()[BEIJING] == {"wan2.6-image": 3}
