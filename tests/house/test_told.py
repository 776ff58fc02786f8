"""Nothing untold: every setting explains itself and is used, every metric is declared, fed and explained."""

import ast
import re
from types import NoneType
from typing import Any, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from prometheus_client.metrics import MetricWrapperBase
from pydantic.fields import FieldInfo

from app.lib import metrics
from app.settings import Settings
from tests.house.source import app_modules, elsewhere, module

FIELDS = Settings.model_fields
# A count needs no unit; what it counts is in its name.
UNITS = ("_seconds", "_bytes", "_per_second", "_size", "_days", "_count")
METRICS = {name: metric for name, metric in vars(metrics).items() if isinstance(metric, MetricWrapperBase)}
METRIC_UNITS = ("_seconds", "_bytes_total", "_total", "_open", "_due")


def _base_types(field: FieldInfo) -> set[Any]:
    """Return the types a field may have, None apart."""
    kinds = get_args(field.annotation) if get_origin(field.annotation) is not None else (field.annotation,)
    return {kind for kind in kinds if kind is not NoneType} if _is_optional(field) else {field.annotation}


def _is_optional(field: FieldInfo) -> bool:
    return NoneType in get_args(field.annotation) or get_origin(field.annotation) is Union


NUMBERS = [name for name, field in FIELDS.items() if _base_types(field) & {int, float}]


@pytest.mark.parametrize("name", FIELDS)
def test_a_setting_says_what_it_does(name: str) -> None:
    assert FIELDS[name].description


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_among_the_settings_is_bounded_on_both_sides(name: str) -> None:
    bounds = {type(bound) for bound in FIELDS[name].metadata}
    assert bounds & {Ge, Gt}
    assert bounds & {Le, Lt}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_among_the_settings_has_its_unit_in_its_name(name: str) -> None:
    assert name.endswith(UNITS)


def test_every_setting_is_used_somewhere() -> None:
    read = {
        node.attr
        for source in elsewhere("app/settings.py")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute)
    }
    files = {name for name in FIELDS if name.endswith("_file") and name.removesuffix("_file") in FIELDS}
    assert set(FIELDS) - files - read == set()


def test_every_secret_setting_is_kept_out_of_the_boot_log() -> None:
    secret = "a-secret-that-must-not-be-shown-0123456789"
    names = [name for name, field in FIELDS.items() if "SecretStr" in str(field.annotation)]
    settings = Settings(**{**dict.fromkeys(names, secret), "demo_region": "cn-beijing"})  # type: ignore[arg-type]
    from app.settings import masked

    assert {"secret_key", "admin_token", "database_url", "redis_url"} <= set(names)
    assert secret not in str(masked(settings))
    assert secret not in repr(settings)


def test_no_setting_that_holds_a_secret_is_plain_text() -> None:
    words = re.compile(r"(secret|token|password|_key)(_|$)")
    plain = [
        name
        for name, field in FIELDS.items()
        if words.search(name) and not name.endswith("_file") and "SecretStr" not in str(field.annotation)
    ]
    assert plain == []


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_named_and_explained_like_all_others(name: str) -> None:
    described = next(iter(METRICS[name].describe()))
    exposed = described.name + ("_total" if described.type == "counter" else "")
    assert re.fullmatch(r"dashgate_[a-z_]+", exposed)
    assert exposed.endswith(METRIC_UNITS)
    assert described.documentation.endswith(".")


def test_every_metric_is_fed_somewhere() -> None:
    named = {
        node.id
        for source in app_modules()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    assert set(METRICS) - named == set()


def test_no_label_of_a_metric_is_without_bound() -> None:
    unbounded = {"team", "task", "model", "path", "url", "key", "api_key", "request_id", "message"}
    labels = {label for metric in METRICS.values() for label in metric._labelnames}
    assert labels & unbounded == set()


def test_the_metrics_of_the_app_are_those_of_its_one_file() -> None:
    declared = [node for node in module("app/lib/metrics.py").tree.body if isinstance(node, ast.Assign)]
    assert len(METRICS) == len(declared)
    assert [source.path for source in app_modules() if "REGISTRY" in source.text] == ["app/lib/metrics.py"]
