"""What the two calls of an upload mean: asking for a policy at the upstream, sending the form to the temporary store.

The store is a host of its own: it asks for no key, only for a good policy, and it speaks XML.
"""

from __future__ import annotations

from urllib.parse import parse_qs

from app.simulator import problems, wire
from app.simulator.service import Reply, Visit, admit, authenticate, file_refusal
from app.simulator.upload_form import UploadRefusedError, read_form
from app.simulator.world import World

BUCKET = "dashscope-file"


def give_policy(world: World, visit: Visit) -> Reply:
    """Allow a key to upload files for one model. The model's name is believed, as nobody knows what else happens."""
    key = authenticate(world, visit)
    model = _wanted(visit, "model")
    if _wanted(visit, "action") != "getPolicy":
        raise problems.invalid("action must be getPolicy")
    if not model:
        raise problems.invalid("model is required")
    admit(
        world,
        (key.main_account, key.region, "upload policies", model),
        limit=world.limits.upload_policies_per_second,
    )
    policy = world.temporary_store.grant(
        key, model, max_size_mb=world.options.max_upload_size_mb, now=world.clock.now()
    )
    host = f"http://{visit.host}/oss/{key.region}/{BUCKET}"
    return Reply.json(wire.upload_policy_body(policy, visit.request_id, host=host))


def take_file(world: World, visit: Visit) -> Reply:
    """Take a file under a policy. The journal notes the form's fields, but neither policy nor signature nor file."""
    try:
        if visit.part.rstrip("/") != BUCKET:
            raise UploadRefusedError(404, "NoSuchBucket", message="The specified bucket does not exist.")
        form = read_form(visit.headers.get("content-type", ""), visit.body)
        visit.entry.body = {name: "…" if name in ("Signature", "policy") else form.fields[name] for name in form.fields}
        world.temporary_store.put(form, region=visit.region, now=world.clock.now())
    except UploadRefusedError as refusal:
        return file_refusal(visit, refusal.code, refusal.message, status=refusal.status)
    return Reply(200, b"", "application/xml", {"x-oss-request-id": visit.request_id})


def _wanted(visit: Visit, name: str) -> str:
    return parse_qs(visit.raw_query.decode("latin-1")).get(name, [""])[-1]
