"""The examples in the app's docstrings are true. The commands have none that could run without a terminal."""

import doctest
import importlib

import pytest

from tests.house.source import app_modules

WITH_EXAMPLES = [
    source.dotted for source in app_modules() if ">>> " in source.text and not source.path.startswith("app/cli/")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_are_true(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed


def test_examples_are_found() -> None:
    assert len(WITH_EXAMPLES) > 10
