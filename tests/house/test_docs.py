"""The operator's manual is true: its tables are those of the code, and what it names exists."""

import re
from typing import Any

import pytest
import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from app.models.assets import AssetState
from app.models.tasks import State
from app.settings import Settings
from app.tasks.states import UPSTREAM_WORDS
from tests.house.source import ROOT, app_modules, texts
from tests.house.test_told import METRICS

MANUAL = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
DECISIONS = sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))
DOCUMENTS = [ROOT / "docs/operating.md", *sorted((ROOT / "docs/decisions").glob("*.md"))]
PARTS = ("Context", "Decision", "Consequences", "Refused")
SIGNS = {Ge: "≥", Gt: ">", Le: "≤", Lt: "<"}


def test_the_table_of_settings_is_that_of_the_settings() -> None:
    expected = [settings_row(name, field) for name, field in Settings.model_fields.items()]
    found = [line for line in MANUAL.splitlines() if re.match(r"\| `DASHGATE_\w+` \| .*\|.*\|.*\|$", line)]
    assert found == expected, "\n".join(["the table should be:", *expected])


def test_the_table_of_metrics_names_every_metric_with_its_labels() -> None:
    told = dict(re.findall(r"^\| `(dashgate_\w+)` \| ([\w, ]*) ?\|", MANUAL, re.MULTILINE))
    exposed = {}
    for metric in METRICS.values():
        described = next(iter(metric.describe()))
        name = described.name + ("_total" if described.type == "counter" else "")
        exposed[name] = ", ".join(metric._labelnames)
    assert {name: labels.strip() for name, labels in told.items()} == exposed


def test_every_metric_the_manual_speaks_of_exists() -> None:
    names = {next(iter(metric.describe())).name for metric in METRICS.values()}
    said = {name.removesuffix("_total") for name in re.findall(r"`(dashgate_\w+)`", MANUAL)}
    assert said - names == set()


def test_the_table_of_states_names_every_state_with_dashscopes_word() -> None:
    told = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([A-Z]+) \|", MANUAL, re.MULTILINE))
    assert told == {str(state): UPSTREAM_WORDS[state] for state in State}


@pytest.mark.parametrize("state", AssetState)
def test_the_manual_says_what_a_state_of_an_asset_means(state: AssetState) -> None:
    assert re.search(rf"`{state}` \(", MANUAL)


def test_the_table_of_numbers_has_every_number_that_the_app_says() -> None:
    said = {
        number
        for source in app_modules()
        for text in texts(source)
        for number in re.findall(r"\b[EW]0\d\b", text.value)
    }
    assert set(re.findall(r"^\| ([EW]0\d) \|", MANUAL, re.MULTILINE)) == said


def test_every_log_event_in_the_manual_is_logged_somewhere() -> None:
    told = set(re.findall(r"^\| `(\w+\.\w+)` \|", MANUAL, re.MULTILINE))
    assert told
    assert told - _events() == set()


def test_every_log_event_that_a_person_must_act_on_is_in_the_manual() -> None:
    told = set(re.findall(r"^\| `(\w+\.\w+)` \|", MANUAL, re.MULTILINE))
    assert _events("error") - told == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_only_settings_that_exist(document: Any) -> None:
    named = set(re.findall(r"DASHGATE_[A-Z_]+[A-Z]", document.read_text(encoding="utf-8")))
    assert named - {f"DASHGATE_{name.upper()}" for name in Settings.model_fields} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_names_only_files_that_exist(document: Any) -> None:
    named = re.findall(r"`((?:app|docker|docs|tests|migrations)/[\w/.-]+)`", document.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_command_in_the_manual_exists_with_its_options() -> None:
    unknown = []
    for line in _commands():
        words = line.split()
        known = _options(words)
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        if known is None or used - known:
            unknown.append(line)
    assert unknown == []


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_says_context_decision_consequences_and_what_was_refused(decision: Any) -> None:
    text = decision.read_text(encoding="utf-8")
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == list(PARTS)
    assert len(text.splitlines()) <= 60


def test_the_list_of_decisions_names_each_of_them() -> None:
    listed = re.findall(r"\]\((\d[\w-]+\.md)\)", (ROOT / "docs/decisions/README.md").read_text(encoding="utf-8"))
    assert listed == [path.name for path in DECISIONS]


def settings_row(name: str, field: FieldInfo) -> str:
    """Write one line of the table of settings."""
    secret = "SecretStr" in str(field.annotation)
    default = ("*secret*" if secret else "–") if field.default is None else f"`{field.default}`"
    bounds = " ".join(f"{SIGNS[type(bound)]} {_limit(bound)}" for bound in field.metadata if type(bound) in SIGNS)
    choices = [f"`{choice}`" for choice in getattr(field.annotation, "__args__", ()) if isinstance(choice, str)]
    lengths = [f"{bound.min_length} characters" for bound in field.metadata if hasattr(bound, "min_length")]
    limits = bounds or ", ".join(choices or lengths) or "–"
    return f"| `DASHGATE_{name.upper()}` | {default} | {limits} | {field.description} |"


def _limit(bound: Any) -> Any:
    return next(getattr(bound, name) for name in ("ge", "gt", "le", "lt") if hasattr(bound, name))


def _events(level: str = r"\w+") -> set[str]:
    """Return the log events of the app, of one level or of all."""
    pattern = re.compile(rf'log\.{level.replace("error", "(?:error|exception)")}\(\s*"(\w+\.\w+)"')
    return {event for source in app_modules() for event in pattern.findall(source.text)}


def _commands() -> list[str]:
    """Return what the manual tells to type after `dashgate`, on one line each."""
    text = MANUAL.replace("\\\n", " ")
    said = [
        *re.findall(r"`dashgate ([a-z][^`]*)`", text),
        *re.findall(r"^(?:.*exec.* )?dashgate ([a-z][^#\n]*)", text, re.MULTILINE),
    ]
    return [re.sub(r"'[^']*'|\"[^\"]*\"", "x", line).strip() for line in said]


def _options(words: list[str]) -> set[str] | None:
    """Return the options of a command, or None when there is no such command."""
    from app.cli import app

    command: Any = typer.main.get_command(app)
    for word in words:
        if not hasattr(command, "commands"):
            break
        if word not in command.commands:
            return None
        command = command.commands[word]
    return {option for parameter in command.params for option in getattr(parameter, "opts", [])} | {"--help"}
