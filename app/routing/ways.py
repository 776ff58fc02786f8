"""The ways a call may go: what the team asked for, and how we then call the upstream. Pure; knows no account.

    asked                     offered in the region                     way (mode, upstream call)
    with the async header     asynchronously                            async, async
                              synchronously only                        async, sync: a worker makes the call
    as a stream               synchronously                             relay, sync
                              asynchronously only                       none
    plain                     asynchronously, and durable is on, or     durable, async
                              it is offered in no other form
                              synchronously                             relay, sync

Where the two paths take different bodies, the path asked for decides which of them is offered to this call.
"""

from dataclasses import dataclass

from app.models.tasks import Mode, UpstreamCall
from app.routing.catalogue import Offer


@dataclass(frozen=True, slots=True)
class Asked:
    """How the team called: its service path, and whether it wants a task id or a stream. The header decides."""

    path: str
    is_async: bool = False
    streams: bool = False


@dataclass(frozen=True, slots=True)
class Way:
    """How the call goes: what the team gets, how the upstream is called, and by which path."""

    mode: Mode
    upstream_call: UpstreamCall
    path: str


def find_way(offer: Offer, region: str, *, asked: Asked, durable: bool) -> Way | None:
    """Return the way a call goes in a region, or None when the region has none for it.

    >>> from app.routing.catalogue import load_catalogue
    >>> find_offer = load_catalogue(None).find
    >>> def tell(model, asked, region="cn-beijing", durable=True):
    ...     way = find_way(find_offer(model), region, asked=asked, durable=durable)
    ...     return way and f"{way.mode}, {way.upstream_call}: {way.path.split('/')[1]}"

    A model with both forms, one that is only synchronous, one that is only asynchronous:

    >>> task = Asked("aigc/image-generation/generation", is_async=True)
    >>> stream = Asked("aigc/multimodal-generation/generation", streams=True)
    >>> plain = Asked("aigc/multimodal-generation/generation")
    >>> both, sync_only, async_only = "wan2.6-image", "qwen-image-max", "wan2.5-i2i-preview"
    >>> tell(both, task), tell(sync_only, task)
    ('async, async: image-generation', 'async, sync: multimodal-generation')
    >>> tell(both, stream), tell(async_only, stream)
    ('relay, sync: multimodal-generation', None)
    >>> tell(both, plain), tell(both, plain, durable=False)
    ('durable, async: image-generation', 'relay, sync: multimodal-generation')
    >>> tell(sync_only, plain), tell(async_only, plain, durable=False)
    ('relay, sync: multimodal-generation', 'durable, async: image2image')

    Frankfurt has no synchronous call of wan2.6-image; the two forms of qwen-image take different bodies:

    >>> tell(both, plain, "eu-central-1", durable=False), tell(both, stream, "eu-central-1")
    ('durable, async: image-generation', None)
    >>> tell("qwen-image", plain), tell("qwen-image", Asked("aigc/text2image/image-synthesis"))
    ('relay, sync: multimodal-generation', 'durable, async: text2image')
    """
    async_path, sync_path = _paths(offer, region, asked=asked)
    if asked.is_async:
        if async_path is not None:
            return Way(Mode.ASYNC, UpstreamCall.ASYNC, async_path)
        return Way(Mode.ASYNC, UpstreamCall.SYNC, sync_path) if sync_path is not None else None
    if async_path is not None and not asked.streams and (durable or sync_path is None):
        return Way(Mode.DURABLE, UpstreamCall.ASYNC, async_path)
    return Way(Mode.RELAY, UpstreamCall.SYNC, sync_path) if sync_path is not None else None


def serves_path(offer: Offer, path: str) -> bool:
    """Tell whether a model is called at a path, whatever the headers: clients send either form to either path.

    >>> from app.routing.catalogue import load_catalogue
    >>> offer = load_catalogue(None).models["wan2.6-image"]
    >>> serves_path(offer, "aigc/multimodal-generation/generation/"), serves_path(offer, "aigc/text2image/generation")
    (True, False)
    """
    return _is(path, offer.path) or _is(path, offer.sync_path)


def _paths(offer: Offer, region: str, *, asked: Asked) -> tuple[str | None, str | None]:
    """Return the paths that can take this call in a region: asynchronous, synchronous."""
    async_path, sync_path = offer.async_path_in(region), offer.sync_path_in(region)
    if not offer.bodies_differ:
        return async_path, sync_path
    return (None, sync_path) if _is(asked.path, offer.sync_path) else (async_path, None)


def _is(path: str, known: str | None) -> bool:
    return known is not None and path.strip("/") == known.strip("/")
