"""In CI no test is skipped: what is skipped there proves nothing, and nobody would notice."""

import os

import pytest

SKIPPED: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note each skipped test; one that is expected to fail did run."""
    if report.skipped and not hasattr(report, "wasxfail"):
        SKIPPED.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note each module that was skipped as a whole."""
    if report.skipped:
        SKIPPED.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run."""
    if os.environ.get("CI") and SKIPPED and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say why."""
    if os.environ.get("CI") and SKIPPED:
        terminalreporter.write_line(f"{len(SKIPPED)} skipped, which CI does not allow: {', '.join(SKIPPED)}", red=True)
