"""The OpenAPI document is that of the routes, its copy in docs/ is that of the code, and what it names is there."""

import json
import re
from collections.abc import Iterator
from typing import Any, cast

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from app.api.openapi import as_text, document
from app.main import create_app
from app.resources import Resources
from tests.house.source import ROOT

DOCUMENT = document()
METHODS = ("get", "head", "post", "put", "patch", "delete")


def described() -> set[tuple[str, str]]:
    """Return every method and path of the document."""
    return {(method, path) for path, item in DOCUMENT["paths"].items() for method in METHODS if method in item}


def served() -> set[tuple[str, str]]:
    """Return every method and path of the teams' surface, those that only have a slash more once."""
    app = create_app("teams", cast(Resources, None))
    assert isinstance(app, FastAPI)
    routes = iter_route_contexts(app.routes)
    return {(method.lower(), plain(route.path or "")) for route in routes for method in route.methods or ()}


def plain(path: str) -> str:
    """Write a route's path as the document does."""
    return re.sub(r"\{(\w+):path\}", r"{\1}", path).rstrip("/")


def references(part: Any) -> Iterator[str]:
    """Yield every reference of a part of the document."""
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for inner in part.values():
            yield from references(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from references(inner)


def test_the_document_has_the_teams_routes_and_no_others() -> None:
    assert described() == served()


def test_the_copy_in_docs_is_current() -> None:
    current = (ROOT / "docs/openapi.json").read_text(encoding="utf-8") == as_text(DOCUMENT)
    assert current, "write it anew: python -m app.api.openapi > docs/openapi.json"


def test_every_reference_leads_to_a_component_and_every_component_is_referred_to() -> None:
    components = DOCUMENT["components"]
    there = {f"#/components/{kind}/{name}" for kind in ("headers", "schemas") for name in components[kind]}
    assert set(references(DOCUMENT)) == there


def test_every_route_with_a_key_describes_what_happens_without_one() -> None:
    keyless = [
        (method, path)
        for path, item in DOCUMENT["paths"].items()
        for method in METHODS
        if method in item and "security" not in item[method] and "401" not in item[method]["responses"]
    ]
    assert keyless == []


def test_every_path_names_its_parameters() -> None:
    for path, item in DOCUMENT["paths"].items():
        for method in METHODS:
            operation = item.get(method, {})
            named = [*item.get("parameters", []), *operation.get("parameters", [])]
            inside = {one["name"] for one in named if one["in"] == "path"}
            assert not operation or inside == set(re.findall(r"\{(\w+)\}", path)), path


def test_the_document_can_be_read_by_machines() -> None:
    assert json.loads(as_text(DOCUMENT)) == DOCUMENT
