"""Tests with other people's libraries: `make interop` runs them, and no skip passes there."""

import os

import pytest

if "FCNFAST_INTEROP" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"nothing may be skipped here: {report.longrepr}"
    return report
