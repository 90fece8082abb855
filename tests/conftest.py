"""What every test relies on: who may run, and what is skipped with which reason."""

import os

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ("support.daemon_fixtures", "support.store_fixtures")

# A loaded machine is no failure: nothing here says how long an example may take.
settings.register_profile(
    "pyctr",
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("pyctr")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs root where we are not."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))
