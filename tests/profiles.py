"""What runs in which profile: `make test` leaves the longest checks to `make test-deep`."""

import pytest
from hypothesis import settings

deep = pytest.mark.skipif(settings.default.max_examples < 1000, reason="long: part of `make test-deep`")
"""For checks of many seconds whose ground shorter ones cover too."""
