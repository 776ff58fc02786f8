"""Sizes (style.md A): modules, functions, parameters, and a docstring for every module."""

import ast
from collections.abc import Iterator

from tests.house.source import Function, Module, app_modules, functions, parameters

MODULE_LINES = 400
FUNCTION_LINES = 60
MOST_PARAMETERS = 5
MOST_BY_POSITION = 2

# Handed to almost every function first, and always called so: no reader has to guess what they are.
HANDED_FIRST = {"self", "cls", "res", "session"}

# Signatures that are not ours to choose, by name and parameters.
PROTOCOLS = {
    ("__call__", "scope", "receive", "send"): "ASGI",
    ("__aexit__", "kind", "error", "trace"): "async with",
    ("resolve", "host", "port", "family"): "aiohttp's resolvers",
    ("mask_secrets", "_", "__", "event"): "structlog's processors",
}
# FastAPI and typer call these, by keyword; their parameters are the query, the path and the options people type.
CALLED_BY_FRAMEWORKS = {"api_route", "get", "post", "put", "patch", "delete", "command", "callback"}
COMMANDS_ADDED_BY_NAME = {
    f"app/cli/{noun}.py" for noun in ("demo/__init__", "serve", "worker", "migrate", "doctor", "simulator")
}

# Where the rule would make worse code.
ONE_PER_COLUMN = {"app/lib/leases.py:enqueue"}  # each parameter is a column of `work`; an object would repeat the list
TRIPLES = {
    # an error in the order in which everybody writes it: status, code, message
    *("app/upstream/faults.py:fault_of", "app/simulator/problems.py:__init__", "app/simulator/service.py:file_refusal"),
    "app/errors.py:__init__",  # NotReady: number, problem, hint; read as one sentence
    *("app/lib/guard.py:add", "app/lib/http.py:allow"),  # a host, its port, its scheme: an address
    "app/simulator/front.py:route",  # a line of the table of routes
    "app/simulator/server.py:fail_next",  # operation, kind, times: how tests say it
}


def test_no_module_is_over_400_lines() -> None:
    assert [source.path for source in app_modules() if len(source.text.splitlines()) > MODULE_LINES] == []


def test_no_function_is_over_60_lines() -> None:
    long = [
        source.at(function, f"{function.name} ({_lines(function)})")
        for source in app_modules()
        for function in functions(source)
        if _lines(function) > FUNCTION_LINES
    ]
    assert long == []


def test_no_function_takes_more_than_five_parameters() -> None:
    over = {name for name, positional, keyword in _signatures() if len(positional) + len(keyword) > MOST_PARAMETERS}
    assert over == ONE_PER_COLUMN


def test_all_parameters_after_the_first_two_are_given_by_keyword() -> None:
    over = {name for name, positional, _ in _signatures() if len(positional) > MOST_BY_POSITION}
    assert over == TRIPLES


def test_every_module_says_what_it_owns() -> None:
    silent = [source.path for source in app_modules() if not (ast.get_docstring(source.tree) or "").strip()]
    assert silent == []


def test_every_public_function_and_class_says_what_it_does() -> None:
    silent = [
        source.at(node, node.name)
        for source in app_modules()
        for node in source.tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not (isinstance(node, ast.ClassDef) and _is_enum(node))
    ]
    assert silent == []


def test_the_app_leaves_no_work_for_later_without_an_issue() -> None:
    words = ("TO" + "DO", "FIX" + "ME", "X" + "XX", "NotImplemented" + "Error")
    left = [
        f"{source.path}:{number} {word}"
        for source in app_modules()
        for number, line in enumerate(source.text.splitlines(), 1)
        for word in words
        if word in line
    ]
    assert left == []


def _signatures() -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield every function that we call ourselves, with its parameters but those that are handed first."""
    for source in app_modules():
        for function in functions(source):
            positional, keyword = parameters(function)
            if (function.name, *(name for name in positional if name != "self")) in PROTOCOLS:
                continue
            if _called_by_a_framework(source, function):
                continue
            own = [name for name in positional if name not in HANDED_FIRST]
            yield f"{source.path}:{function.name}", own, [name for name in keyword if name not in HANDED_FIRST]


def _called_by_a_framework(source: Module, function: Function) -> bool:
    decorators = [node.func if isinstance(node, ast.Call) else node for node in function.decorator_list]
    if any(isinstance(node, ast.Attribute) and node.attr in CALLED_BY_FRAMEWORKS for node in decorators):
        return True
    return source.path in COMMANDS_ADDED_BY_NAME and not function.name.startswith("_") and function in source.tree.body


def _lines(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def _is_enum(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id.endswith("Enum") for base in node.bases)
