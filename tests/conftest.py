"""One thread, one seed, and two hypothesis profiles: `ci` (default) and `deep` (HYPOTHESIS_PROFILE=deep)."""

import gc
import os

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

quiet = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("ci", max_examples=25, derandomize=True, database=None, **quiet)
settings.register_profile("deep", max_examples=1000, **quiet)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


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
