"""The examples of docstrings run as a user's code does, not as part of the package."""

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def users_code(doctest_namespace: dict[str, Any]) -> None:
    """Let classes and functions of an example belong to a module of the user's."""
    doctest_namespace["__name__"] = "example"
