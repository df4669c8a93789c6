"""Fixtures of the task tests."""

import os

import pytest


@pytest.fixture
def real_data() -> None:
    """Mark a test that needs a folder of real data sets; it is skipped where there is none."""
    if not os.environ.get("WORKINGPAPERS_DATA"):
        pytest.skip("WORKINGPAPERS_DATA is unset and no shared/data stands beside the repository")
