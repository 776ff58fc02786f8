"""`dashgate destination set`: where a team's files go. It is proved by writing, reading and deleting a small object."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.console import AsJson, Report, run
from app.cli.secret_files import read_secret
from app.cli.troubles import clean_errors

if TYPE_CHECKING:
    from app.delivery.destinations import NewDestination
    from app.resources import Resources

app = typer.Typer(no_args_is_help=True, help="Destinations: where a team's files go.")


class Links(StrEnum):
    """What a team sees in place of the upstream's links."""

    GATEWAY = "gateway"
    PRESIGNED = "presigned"


@app.callback()
def destination() -> None:
    """Keep `set` a word of its own, though it is the only one."""


@app.command("set")
def set_(
    team: Annotated[str, typer.Argument(help="The team's slug.")],
    url: Annotated[str, typer.Option(help="file:///path or s3://bucket/prefix")],
    endpoint: Annotated[str | None, typer.Option(help="The S3 endpoint's URL. [AWS itself]")] = None,
    region: Annotated[str | None, typer.Option(help="The bucket's region.")] = None,
    access_key_id: Annotated[str | None, typer.Option(help="The bucket's access key id.")] = None,
    secret_access_key_file: Annotated[
        Path | None, typer.Option(help="A file that holds the secret access key; - is stdin.")
    ] = None,
    links: Annotated[Links, typer.Option(help="Our own links, or the storage's presigned ones.")] = Links.GATEWAY,
    as_json: AsJson = False,
) -> None:
    """Set a team's destination. Tasks that were accepted before keep theirs."""
    with clean_errors(as_json=as_json):
        from app.delivery.destinations import NewDestination
        from app.models.destinations import LinkMode

        file = secret_access_key_file
        new = NewDestination(
            url,
            endpoint=endpoint,
            region=region,
            access_key_id=access_key_id,
            secret_access_key=read_secret(None, file, option="--secret-access-key") if file else None,
            links=LinkMode(links),
        )
    run(lambda res: _set(res, team, new), as_json=as_json)


async def _set(res: Resources, team: str, new: NewDestination) -> Report:
    from app.delivery.destinations import set_destination

    place_id = await set_destination(res, team, new)
    told = f"Files of {team} go to {new.url} from now on; a test object was written, read and removed there."
    return Report({"team": team, "place_id": place_id, "url": new.url, "links": str(new.links)}, [told])
