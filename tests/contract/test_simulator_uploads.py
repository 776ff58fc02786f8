"""Temporary uploads: a policy, a form that must fit it, and inputs that only their own account and model may read."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from xml.etree import ElementTree as ET

import httpx
import pytest
import pytest_asyncio

from app.simulator import BEIJING, SINGAPORE, Simulator, SimulatorKey, SimulatorOptions, running_simulator
from tests.contract.conftest import UpstreamCaller

MODEL = "wan2.6-image"
CONTENT = b"not really\r\n--a picture--\r\n"
RESOLVE = {"X-DashScope-OssResourceResolve": "enable"}
STRANGER = SimulatorKey("sk-sim-stranger", BEIJING, "2000000000000002")
COLLEAGUE = SimulatorKey("sk-sim-colleague", BEIJING)


class Uploader:
    """Uploads as the SDKs do, step by step."""

    def __init__(self, upstream: UpstreamCaller) -> None:
        self.upstream = upstream

    async def ask(self, path: str = "/uploads", **wanted: str) -> httpx.Response:
        return await self.upstream.http.get(self.upstream.base_url + path, params=wanted, headers=self.upstream.headers)

    async def policy(self, model: str = MODEL) -> dict[str, Any]:
        answer = await self.ask(action="getPolicy", model=model)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["data"])

    async def send(
        self, policy: dict[str, Any], /, *, content: bytes = CONTENT, **changes: str | None
    ) -> httpx.Response:
        """Send a file; `changes` are fields to set otherwise, or to leave out."""
        fields = {**form(policy), **changes}
        given = {name: value for name, value in fields.items() if value is not None}
        return await self.upstream.http.post(policy["upload_host"], data=given, files={"file": ("cup.png", content)})

    async def upload(self, model: str = MODEL) -> str:
        """Upload a file that must be taken; return the link to it."""
        policy = await self.policy(model)
        answer = await self.send(policy)
        assert answer.status_code == 200, answer.text
        return f"oss://{form(policy)['key']}"

    async def create(self, link: str, **headers: str) -> httpx.Response:
        """Create a task with the file as its input."""
        body = self.upstream.order()
        body["input"]["messages"][0]["content"][1]["image"] = link
        sent = {**self.upstream.headers, "X-DashScope-Async": "enable", **headers}
        return await self.upstream.post(body, headers=sent)


def form(policy: dict[str, Any]) -> dict[str, str]:
    """Fill in the form that a policy asks for."""
    return {
        "OSSAccessKeyId": policy["oss_access_key_id"],
        "Signature": policy["signature"],
        "policy": policy["policy"],
        "key": f"{policy['upload_dir']}/cup.png",
        "x-oss-object-acl": policy["x_oss_object_acl"],
        "x-oss-forbid-overwrite": policy["x_oss_forbid_overwrite"],
        "success_action_status": "200",
    }


def xml_refusal(answer: httpx.Response) -> tuple[int, str | None, str | None]:
    assert answer.headers["content-type"] == "application/xml"
    error = ET.fromstring(answer.text)  # noqa: S314 - the simulator's own words
    assert error.tag == "Error"
    return answer.status_code, error.findtext("Code"), error.findtext("Message")


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


@pytest.fixture
def uploader(upstream: UpstreamCaller) -> Uploader:
    return Uploader(upstream)


@pytest_asyncio.fixture(loop_scope="session")
async def shared_house(http: httpx.AsyncClient) -> AsyncIterator[Simulator]:
    """A simulator with two keys of one main account, a key of another one, and small files only."""
    keys = (SimulatorKey("sk-sim-beijing", BEIJING), COLLEAGUE, STRANGER)
    async with running_simulator(SimulatorOptions(keys=keys, clock_scale=0, max_upload_size_mb=1)) as sim:
        yield sim


def with_key(sim: Simulator, http: httpx.AsyncClient, key: SimulatorKey) -> Uploader:
    upstream = UpstreamCaller(sim, http)
    upstream.headers = {"Authorization": f"Bearer {key.secret}"}
    return Uploader(upstream)


# The policy.


@pytest.mark.parametrize("path", ["/uploads", "/uploads/"])
async def test_a_policy_has_the_documented_fields(sim: Simulator, uploader: Uploader, path: str) -> None:
    body = (await uploader.ask(path, action="getPolicy", model=MODEL)).json()
    data = body["data"]
    assert body.keys() == {"request_id", "data"}
    assert data.keys() == {
        *("policy", "signature", "upload_dir", "upload_host", "expire_in_seconds", "max_file_size_mb"),
        *("capacity_limit_mb", "oss_access_key_id", "x_oss_object_acl", "x_oss_forbid_overwrite"),
    }
    assert (data["expire_in_seconds"], data["max_file_size_mb"]) == (300, 100)
    assert (data["x_oss_object_acl"], data["x_oss_forbid_overwrite"]) == ("private", "true")
    assert data["upload_host"].startswith(f"http://{sim.file_host}/oss/")
    policy = json.loads(base64.b64decode(data["policy"]))
    assert datetime.fromisoformat(policy["expiration"]).timestamp() == pytest.approx(sim.truth.clock.now() + 300, 1e-3)
    assert ["starts-with", "$key", data["upload_dir"]] in policy["conditions"]


async def test_every_policy_has_a_folder_of_its_own(uploader: Uploader) -> None:
    first, second = await uploader.policy(), await uploader.policy()
    assert first["upload_dir"] != second["upload_dir"]


@pytest.mark.parametrize("wanted", [{}, {"action": "getPolicy"}, {"model": MODEL}, {"action": "x", "model": MODEL}])
async def test_a_policy_needs_action_and_model(uploader: Uploader, wanted: dict[str, str]) -> None:
    assert refusal(await uploader.ask(**wanted)) == (400, "InvalidParameter")


async def test_a_policy_needs_a_key(uploader: Uploader) -> None:
    uploader.upstream.headers = {}
    assert refusal(await uploader.ask(action="getPolicy", model=MODEL)) == (401, "InvalidApiKey")


async def test_policies_are_counted_for_each_model(sim: Simulator, uploader: Uploader) -> None:
    sim.set_limits(upload_policies_per_second=2)
    await uploader.policy()
    await uploader.policy()
    assert refusal(await uploader.ask(action="getPolicy", model=MODEL)) == (429, "Throttling.RateQuota")
    await uploader.policy("another-model")
    sim.advance(1)
    await uploader.policy()


# The form.


async def test_a_file_is_taken_byte_for_byte(sim: Simulator, uploader: Uploader) -> None:
    link = await uploader.upload()
    [upload] = sim.truth.uploads
    assert (f"oss://{upload.key}", upload.size_bytes, upload.sha256) == (
        link,
        len(CONTENT),
        hashlib.sha256(CONTENT).hexdigest(),
    )
    assert (upload.model, upload.region, upload.main_account) == (MODEL, BEIJING, "1000000000000001")


async def test_one_policy_is_good_for_several_files(sim: Simulator, uploader: Uploader) -> None:
    policy = await uploader.policy()
    for name in ("a.png", "b.png"):
        assert (await uploader.send(policy, key=f"{policy['upload_dir']}/{name}")).status_code == 200
    assert len(sim.truth.uploads) == 2


async def test_the_journal_keeps_the_fields_in_order_but_no_credentials(sim: Simulator, uploader: Uploader) -> None:
    policy = await uploader.policy()
    await uploader.send(policy)
    [entry] = sim.truth.journal.read(operation="upload")
    assert list(entry.body) == list(form(policy))
    assert entry.body["key"] == form(policy)["key"]
    assert policy["signature"] not in str(entry.body)
    assert policy["policy"] not in str(entry.body)


async def test_the_control_port_lists_uploads(sim: Simulator, uploader: Uploader) -> None:
    await uploader.upload()
    [upload] = (await uploader.upstream.http.get(f"{sim.control_url}/uploads")).json()["uploads"]
    assert upload["sha256"] == sim.truth.uploads[0].sha256


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"Signature": "bm8="}, (403, "SignatureDoesNotMatch")),
        ({"policy": "e30="}, (403, "SignatureDoesNotMatch")),
        ({"OSSAccessKeyId": "LTAI-other"}, (403, "InvalidAccessKeyId")),
        ({"key": "elsewhere/cup.png"}, (403, "AccessDenied")),
        ({"x-oss-object-acl": "public-read"}, (403, "AccessDenied")),
        ({"x-oss-forbid-overwrite": "false"}, (403, "AccessDenied")),
        ({"success_action_status": "teapot"}, (400, "InvalidArgument")),
        ({"policy": None}, (400, "InvalidArgument")),
        ({"x-oss-forbid-overwrite": None}, (400, "InvalidArgument")),
    ],
)
async def test_a_form_must_fit_its_policy(
    sim: Simulator, uploader: Uploader, changes: dict[str, str | None], wanted: tuple[int, str]
) -> None:
    answer = await uploader.send(await uploader.policy(), **changes)
    assert xml_refusal(answer)[:2] == wanted
    assert sim.truth.uploads == ()


async def test_an_expired_policy_is_refused(sim: Simulator, uploader: Uploader) -> None:
    policy = await uploader.policy()
    sim.advance(299)
    assert (await uploader.send(policy)).status_code == 200
    sim.advance(1)
    late = await uploader.send(policy, key=f"{policy['upload_dir']}/late.png")
    assert xml_refusal(late) == (403, "AccessDenied", "Invalid according to Policy: Policy expired")


async def test_nothing_is_overwritten(uploader: Uploader) -> None:
    policy = await uploader.policy()
    assert (await uploader.send(policy)).status_code == 200
    assert xml_refusal(await uploader.send(policy))[:2] == (409, "FileAlreadyExists")


async def test_a_file_above_the_limit_is_refused(shared_house: Simulator, http: httpx.AsyncClient) -> None:
    uploader = with_key(shared_house, http, COLLEAGUE)
    policy = await uploader.policy()
    assert policy["max_file_size_mb"] == 1
    assert xml_refusal(await uploader.send(policy, content=b"x" * (1024 * 1024 + 1)))[:2] == (400, "EntityTooLarge")
    assert (await uploader.send(policy, content=b"x" * 1024 * 1024)).status_code == 200


async def test_the_bucket_of_another_region_refuses(sim: Simulator, uploader: Uploader) -> None:
    policy = await uploader.policy()
    policy["upload_host"] = policy["upload_host"].replace(BEIJING, SINGAPORE)
    assert xml_refusal(await uploader.send(policy))[:2] == (403, "AccessDenied")
    policy["upload_host"] += "-of-nobody"
    assert xml_refusal(await uploader.send(policy))[:2] == (404, "NoSuchBucket")


async def test_a_field_after_the_file_is_refused(uploader: Uploader) -> None:
    policy = await uploader.policy()
    parts = [("file", ("cup.png", CONTENT)), *((name, (None, value)) for name, value in form(policy).items())]
    answer = await uploader.upstream.http.post(policy["upload_host"], files=parts)
    assert xml_refusal(answer)[:2] == (400, "MalformedPOSTRequest")


async def test_a_form_of_another_kind_is_refused(uploader: Uploader) -> None:
    policy = await uploader.policy()
    answer = await uploader.upstream.http.post(policy["upload_host"], data=form(policy))
    assert xml_refusal(answer)[:2] == (412, "PreconditionFailed")


async def test_a_scripted_refusal_of_the_store_is_xml(sim: Simulator, uploader: Uploader) -> None:
    sim.fail_next("upload", "error", status=403, code="AccessDenied", message="Access denied by bucket policy.")
    answer = await uploader.send(await uploader.policy())
    assert xml_refusal(answer) == (403, "AccessDenied", "Access denied by bucket policy.")


# The input.


async def test_an_uploaded_file_is_an_input(sim: Simulator, uploader: Uploader) -> None:
    link = await uploader.upload()
    answer = await uploader.create(link, **RESOLVE)
    assert answer.status_code == 200, answer.text
    [entry] = sim.truth.journal.read(operation="create")
    assert entry.body["input"]["messages"][0]["content"][1]["image"] == link


async def test_without_the_header_the_link_is_no_link(sim: Simulator, uploader: Uploader) -> None:
    answer = await uploader.create(await uploader.upload())
    assert refusal(answer) == (400, "InvalidParameter")
    assert "does not appear to be valid" in answer.json()["message"]
    assert sim.truth.tasks == ()


def is_not_found(answer: httpx.Response) -> bool:
    body = answer.json()
    return (answer.status_code, body["code"], body["message"]) == (400, "InvalidParameter", "download image failed")


async def test_a_file_nobody_uploaded_cannot_be_downloaded(sim: Simulator, uploader: Uploader) -> None:
    assert is_not_found(await uploader.create("oss://dashscope-instant/nothing.png", **RESOLVE))
    assert sim.truth.tasks == ()


async def test_synchronous_calls_read_uploads_by_the_same_rules(sim: Simulator, uploader: Uploader) -> None:
    sim.set_durations(0, 0)
    upstream, link = uploader.upstream, await uploader.upload()
    statuses = []
    for given, headers in ((link, {}), ("oss://dashscope-instant/nothing.png", RESOLVE), (link, RESOLVE)):
        body = upstream.order()
        body["input"]["messages"][0]["content"][1]["image"] = given
        answer = await upstream.call("aigc/multimodal-generation/generation", body, **headers)
        statuses.append(answer.status_code)
    assert statuses == [400, 400, 200]
    assert len(sim.truth.calls) == 1


async def test_a_file_lives_for_48_hours(sim: Simulator, uploader: Uploader) -> None:
    link = await uploader.upload()
    sim.advance(48 * 3600 - 1)
    assert (await uploader.create(link, **RESOLVE)).status_code == 200
    sim.advance(1)
    assert is_not_found(await uploader.create(link, **RESOLVE))


async def test_a_file_belongs_to_the_model_of_its_policy(uploader: Uploader) -> None:
    assert is_not_found(await uploader.create(await uploader.upload("another-model"), **RESOLVE))


async def test_a_file_belongs_to_its_main_account(shared_house: Simulator, http: httpx.AsyncClient) -> None:
    link = await Uploader(UpstreamCaller(shared_house, http)).upload()
    assert is_not_found(await with_key(shared_house, http, STRANGER).create(link, **RESOLVE))
    assert (await with_key(shared_house, http, COLLEAGUE).create(link, **RESOLVE)).status_code == 200


async def test_a_file_belongs_to_its_region(sim: Simulator, uploader: Uploader, http: httpx.AsyncClient) -> None:
    elsewhere = Uploader(UpstreamCaller(sim, http, SINGAPORE))
    assert is_not_found(await elsewhere.create(await uploader.upload(), **RESOLVE))
