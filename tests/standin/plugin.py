"""A pytest plugin: runs the tests on "cuda" and those of this folder, and fails a test in which the driver reports."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from standin import bridge

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The other tests run without the stand-in."""

    def is_for_cuda(item: pytest.Item) -> bool:
        identifier = item.nodeid.partition("[")[2].rstrip("]").split("-")
        return FOLDER in item.path.parents or "cuda" in identifier

    config.hook.pytest_deselected(items=[item for item in items if not is_for_cuda(item)])
    items[:] = filter(is_for_cuda, items)


@pytest.fixture(autouse=True)
def nothing_is_reported(request: pytest.FixtureRequest) -> Iterator[None]:
    """No error outlives its test. A test that provokes reports takes them itself, with bridge.take_reports()."""
    bridge.take_reports()
    yield
    bridge.driver.standin_recover()
    reports = bridge.take_reports()
    if reports:
        counted = "\n".join(f"{count} x {report}" for report, count in Counter(reports).items())
        pytest.fail(f"the stand-in reports:\n{counted}", pytrace=False)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist tells what it launched."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["launched"] = dict(bridge.launched)


def pytest_testnodedown(node: object, error: object) -> None:
    bridge.launched.update(getattr(node, "workeroutput", {}).get("launched", {}))


pytest_testnodedown = pytest.hookimpl(optionalhook=True)(pytest_testnodedown)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    total = sum(bridge.launched.values())
    terminalreporter.write_line(f"stand-in for a GPU: {total:,} launches of {len(bridge.launched)} kernels")
