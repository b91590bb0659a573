"""One thread, one seed, and two hypothesis profiles: `ci` (default) and `deep` (HYPOTHESIS_PROFILE=deep)."""

import gc
import math
import os
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

quiet = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("ci", max_examples=25, derandomize=True, database=None, **quiet)
settings.register_profile("deep", max_examples=1000, **quiet)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test marked thin, and of each grid of nine cases or more, an eighth of the cases; the others are deep.

    A grid has two lists of cases or more. Never two cases in a row run, and at most twelve are missing in a row.
    """
    named = [(item, (getattr(item, "originalname", item.name), item.path)) for item in items]
    cases, number = Counter(name for _, name in named), Counter()
    for item, name in named:
        grid = cases[name] >= 9 and len(list(item.iter_markers("parametrize"))) > 1
        if grid or item.get_closest_marker("thin"):
            number[name] += 1
            if (number[name] - 1) * (math.sqrt(5) - 1) / 2 % 1 >= 1 / 8:
                item.add_marker(pytest.mark.deep)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def double():
    """float64 as the default, for modules that can't be told a dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def small_heap():
    """Whatever exists is put aside, so that collecting and listing objects costs little."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def pair():
    """Two processes that are a group, which run what they are given."""
    from support.processes import Processes

    group = Processes(2)
    yield group
    group.stop()
