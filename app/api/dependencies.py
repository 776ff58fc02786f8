"""What routes ask for by name: the resources of the process, and who is calling.

What FastAPI resolves is async although it waits for nothing: plain functions would go to a thread, at ten times the
cost. The two routes that make up nearly all calls ask directly, without FastAPI's resolving.
"""

from hmac import compare_digest
from typing import Annotated

import structlog
from fastapi import Depends, Request

from app.errors import InvalidApiKey, InvalidParameter
from app.resources import Resources
from app.teams.authenticate import Caller, authenticate


def resources(request: Request) -> Resources:
    """Return the resources that this process opened (main.py)."""
    found: Resources = request.app.state.resources
    return found


async def _resources(request: Request) -> Resources:
    return resources(request)


async def caller(request: Request) -> Caller:
    """Return who is calling, by the Authorization header.

    Raises:
        InvalidApiKey, DatabaseAway: as teams/authenticate.py; InvalidParameter: two such headers.
    """
    given = request.headers.getlist("authorization")
    if len(given) > 1:
        raise InvalidParameter("There is more than one Authorization header.")
    found = await authenticate(resources(request), given[0] if given else None)
    structlog.contextvars.bind_contextvars(team=found.team)
    return found


async def operator(request: Request) -> None:
    """Let the operator pass, by the admin token; without a token set nobody passes.

    Raises:
        InvalidApiKey: no token, or another one.
    """
    token = resources(request).settings.admin_token
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    expected = token.get_secret_value() if token else ""
    if not expected or scheme.lower() != "bearer" or not compare_digest(given.encode(), expected.encode()):
        raise InvalidApiKey("The operators' token is missing or wrong.")


ResourcesDep = Annotated[Resources, Depends(_resources)]
CallerDep = Annotated[Caller, Depends(caller)]
OperatorDep = Depends(operator)
