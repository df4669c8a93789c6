"""Remarks: for each claim that did not hold here, what was measured, and what the paper had that we had not."""

import json
from functools import cache
from pathlib import Path


@cache
def remarks() -> dict[str, str]:
    """Return a paragraph by claim, such as "snake:sine_beyond_its_range"."""
    found: dict[str, str] = json.loads(Path(__file__).with_name("remarks.json").read_text("utf-8"))
    return found
