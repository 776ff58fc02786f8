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


def is_operator(request: Request) -> bool:
    """Tell whether a request bears the admin token; without a token set nobody does."""
    token = resources(request).settings.admin_token
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    expected = token.get_secret_value() if token else ""
    return bool(expected) and scheme.lower() == "bearer" and compare_digest(given.encode(), expected.encode())


async def operator(request: Request) -> None:
    """Let the operator pass.

    Raises:
        InvalidApiKey: no admin token, or another one.
    """
    if not is_operator(request):
        raise InvalidApiKey("The operators' token is missing or wrong.")


ResourcesDep = Annotated[Resources, Depends(_resources)]
CallerDep = Annotated[Caller, Depends(caller)]
OperatorDep = Depends(operator)
