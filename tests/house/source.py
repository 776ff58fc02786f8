"""The app's source as syntax trees, and the questions the house asks of them. Imports nothing of the app."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One file of the app."""

    path: str  # from the repository's top, with slashes
    text: str
    tree: ast.Module

    @property
    def dotted(self) -> str:
        """The name it is imported by."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def at(self, node: ast.AST, what: str) -> str:
        """Say where something is, as a person would look it up."""
        return f"{self.path}:{getattr(node, 'lineno', 1)} {what}"


@cache
def app_modules() -> tuple[Module, ...]:
    """Read every Python file of the app, once."""
    paths = sorted((ROOT / "app").rglob("*.py"))
    return tuple(
        Module(path.relative_to(ROOT).as_posix(), text, ast.parse(text))
        for path, text in ((path, path.read_text(encoding="utf-8")) for path in paths)
    )


def module(path: str) -> Module:
    """Return one file of the app by its path."""
    return next(found for found in app_modules() if found.path == path)


def elsewhere(*allowed: str) -> Iterator[Module]:
    """Yield the app's files but those allowed: a path, or a folder ending in a slash."""
    for found in app_modules():
        if not any(found.path == place or (place.endswith("/") and found.path.startswith(place)) for place in allowed):
            yield found


def uses(modules: Iterator[Module], is_it: Callable[[str, ast.AST], bool]) -> list[str]:
    """List the places where a dotted name matters: `is_it` is given the full name and the node that says it.

    Names are resolved through the file's own imports, so `import time as t; t.time()` and
    `from time import time; time()` both are `time.time`.
    """
    found = []
    for source in modules:
        known = imports(source)
        for node in ast.walk(source.tree):
            name = dotted_name(node, known)
            if name is not None and is_it(name, node):
                found.append(source.at(node, name))
    return found


def imports(source: Module) -> dict[str, str]:
    """Return what each imported name stands for, wherever in the file it is imported."""
    known: dict[str, str] = {}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                known[name.asname or name.name.partition(".")[0]] = (
                    name.name if name.asname else name.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in node.names:
                known[name.asname or name.name] = f"{node.module}.{name.name}"
    return known


def imported_from(source: Module) -> Iterator[tuple[ast.AST, str]]:
    """Yield every name an import statement brings in, in full, with its statement."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node, f"{node.module}.{name.name}") for name in node.names)


def dotted_name(node: ast.AST, known: dict[str, str]) -> str | None:
    """Return the full name that an expression says, or None when it says none."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        base = dotted_name(node.value, known)
        return f"{base}.{node.attr}" if base else None
    return None


def method_calls(source: Module, *names: str) -> Iterator[ast.Call]:
    """Yield calls of a method by its bare name, whatever it is called on."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
            yield node


def functions(source: Module) -> Iterator[Function]:
    """Yield every function of a file, methods and inner ones included."""
    for node in ast.walk(source.tree):
        if isinstance(node, Function):
            yield node


def public_functions(source: Module) -> list[Function]:
    """Return the functions of a module that others may call."""
    return [node for node in source.tree.body if isinstance(node, Function) and not node.name.startswith("_")]


def parameters(function: Function) -> tuple[list[str], list[str]]:
    """Return a function's parameters: those that may be given by position, and those by keyword only."""
    arguments = function.args
    return [arg.arg for arg in (*arguments.posonlyargs, *arguments.args)], [arg.arg for arg in arguments.kwonlyargs]


def texts(source: Module) -> Iterator[ast.Constant]:
    """Yield the string constants of a file that are not docstrings, parts of f-strings included."""
    documents = {
        id(node.body[0].value)
        for node in ast.walk(source.tree)
        if isinstance(node, (ast.Module, ast.ClassDef, *Function.__args__))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node
