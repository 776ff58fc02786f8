"""Contents: the files of a task as bytes, for answers that carry them instead of links. Bounded; knows no HTTP."""

from uuid import UUID

from app.delivery import store
from app.delivery.download import NoImage
from app.delivery.serve import open_asset
from app.delivery.storage import StoreTrouble
from app.errors import FileAway, InvalidParameter
from app.lib.db import reading
from app.resources import Resources

TOO_LARGE = "The files of this answer are too large to be sent in it; ask for links."


async def read_files(res: Resources, team_id: UUID, task_id: UUID, *, most_bytes: int) -> dict[str, bytes]:
    """Return a task's files by their place in its answer's `output`.

    Raises:
        InvalidParameter: together they are larger than `most_bytes`, counted while reading.
        FileAway, Gone: one of them cannot be read now, or not any more.
        DatabaseAway: nobody knows which they are now.
    """
    async with reading(res) as session:
        assets = await store.read_assets(session, team_id, task_id)
    files: dict[str, bytes] = {}
    for asset in assets:
        files[asset["json_path"]] = await _read(res, asset["id"], most_bytes=most_bytes)
        most_bytes -= len(files[asset["json_path"]])
    return files


async def _read(res: Resources, asset_id: UUID, *, most_bytes: int) -> bytes:
    content = bytearray()
    try:
        async with open_asset(res, asset_id) as opened:
            async for chunk in opened.chunks:
                content += chunk
                if len(content) > most_bytes:
                    raise InvalidParameter(TOO_LARGE, param="response_format")
    except (StoreTrouble, NoImage) as trouble:
        raise FileAway() from trouble
    return bytes(content)
