"""What every test relies on: who may run, and what is skipped with which reason."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from support.patience import SLOWNESS

# Otherwise grpc, once a test has used it, starts its threads anew in every child that a later one forks.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

pytest_plugins = ("support.daemon_fixtures", "support.store_fixtures")

# A loaded machine is no failure: nothing here says how long an example may take.
settings.register_profile(
    "pyctr",
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("pyctr")


def pytest_configure() -> None:
    """Take interrupts, also as a shell's background job, which ignores them: so would all programs that tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs root where we are not; give all more time where everything takes longer."""
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))
        if SLOWNESS != 1 and not item.get_closest_marker("vm"):  # whose limits are meant for there
            limit = item.get_closest_marker("timeout")
            seconds = limit.args[0] if limit else float(config.getini("timeout"))
            item.add_marker(pytest.mark.timeout(seconds * SLOWNESS), append=False)
