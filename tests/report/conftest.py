"""Invented verifications, so that no test of the report has to run a model."""

from __future__ import annotations

import pytest

import parity_records
from lfm2export.verify.results import Verification


@pytest.fixture(scope="session")
def good() -> Verification:
    return parity_records.verification()


@pytest.fixture(scope="session")
def failing() -> Verification:
    return parity_records.failing()


@pytest.fixture(scope="session")
def unmeasured() -> Verification:
    return parity_records.unmeasured()
