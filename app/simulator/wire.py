"""The envelopes of DashScope's answers (pure): nothing here decides, it only writes down.

What a family puts into them is in `shapes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any
from xml.sax.saxutils import escape

from app.simulator.problems import Problem
from app.simulator.shapes import metrics_before_success, output_of, usage_of
from app.simulator.tasks import Order, Picture, Status, Task

# All regions report UTC+8 here; that is documented for one page only.
UPSTREAM_ZONE = timezone(timedelta(hours=8))

Json = dict[str, Any]


def problem_body(problem: Problem, request_id: str) -> Json:
    """Render a refusal."""
    return {"code": problem.code, "message": problem.message, "request_id": request_id}


def created_body(task: Task, request_id: str) -> Json:
    """Render the receipt of an asynchronous create."""
    return {"output": {"task_status": Status.PENDING.value, "task_id": task.id}, "request_id": request_id}


def unknown_task_body(task_id: str, request_id: str) -> Json:
    """Render the answer for a task that is not there (any more): HTTP 200."""
    return {"request_id": request_id, "output": {"task_id": task_id, "task_status": Status.UNKNOWN.value}}


def task_body(task: Task, request_id: str, *, file_base: str) -> Json:
    """Render a task's present state; links to its files begin with `file_base`."""
    output: Json = {"task_id": task.id, "task_status": task.status.value, "submit_time": stamp(task.created_at)}
    if task.scheduled_at is not None:
        output["scheduled_time"] = stamp(task.scheduled_at)
    if task.ended_at is not None:
        output["end_time"] = stamp(task.ended_at)
    body: Json = {"request_id": request_id, "output": output}
    if task.status is Status.SUCCEEDED:
        output.update(output_of(task.order, links_to(task.pictures, file_base)))
        body["usage"] = usage_of(task.order)
    if task.status in (Status.RUNNING, Status.FAILED):
        output.update(metrics_before_success(task.order, failed=task.status is Status.FAILED))
    if task.status is Status.FAILED and task.failure is not None:
        output["code"], output["message"] = task.failure.code, task.failure.message
    return body


def call_body(order: Order, links: Sequence[str], *, request_id: str) -> Json:
    """Render the whole answer of a synchronous call that has succeeded."""
    return {"output": output_of(order, links), "usage": usage_of(order), "request_id": request_id}


def links_to(pictures: Sequence[Picture], file_base: str) -> list[str]:
    """Return the whole links to files."""
    return [f"{file_base}{picture.path}?{picture.query}" for picture in pictures]


def canceled_body(request_id: str) -> Json:
    """Render the answer to a cancel that was heard."""
    return {"request_id": request_id}


def upload_policy_body(policy: Json, request_id: str, *, host: str) -> Json:
    """Render an upload policy; the file goes to `host`."""
    return {"request_id": request_id, "data": {**policy, "upload_host": host}}


def list_body(tasks: Sequence[Task], request_id: str, *, total: int, page_no: int, page_size: int) -> Json:
    """Render one page of the list; it has no results and no error details."""
    return {
        "total": total,
        "total_page": -(-total // page_size),
        "page_no": page_no,
        "page_size": page_size,
        "request_id": request_id,
        "data": [_row(task) for task in tasks],
    }


def oss_error(code: str, message: str, *, request_id: str, host: str) -> str:
    """Render a refusal of the file host."""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error>\n  <Code>{escape(code)}</Code>\n  <Message>{escape(message)}</Message>\n"
        f"  <RequestId>{escape(request_id)}</RequestId>\n  <HostId>{escape(host)}</HostId>\n</Error>\n"
    )


def stamp(instant: float) -> str:
    """Write an instant as DashScope does: zone-less, in UTC+8, with milliseconds.

    >>> stamp(1795312800.1)
    '2026-11-22 10:00:00.100'
    """
    return datetime.fromtimestamp(instant, UPSTREAM_ZONE).isoformat(" ", "milliseconds")[:23]


def _row(task: Task) -> Json:
    row: Json = {
        "task_id": task.id,
        "status": task.status.value,
        "model_name": task.model,
        "region": task.region,
        "request_id": task.request_id,
        "gmt_create": _milliseconds(task.created_at),
        "api_key_id": task.key.api_key_id,
        "caller_uid": task.key.main_account,
        "caller_parent_id": task.key.main_account,
        "user_api_unique_key": f"apikey:v1:{task.order.service.replace('/', ':')}:{task.model}",
    }
    if task.scheduled_at is not None:
        row["start_time"] = _milliseconds(task.scheduled_at)
    if task.ended_at is not None:
        row["end_time"] = _milliseconds(task.ended_at)
    return row


def _milliseconds(instant: float) -> int:
    return int(instant * 1000)
