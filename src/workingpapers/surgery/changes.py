"""What a transform changed, kept on the model that it returns."""

from collections.abc import Iterable
from typing import Any

ATTRIBUTE = "workingpapers_changes"


def note_changes(model: Any, sentences: Iterable[str]) -> Any:
    """Note on `model` what was changed, after what is noted already; return the model."""
    setattr(model, ATTRIBUTE, [*changes(model), *sentences])
    return model


def changes(model: Any) -> list[str]:
    """Return what transforms of ours changed in `model`, one sentence each, oldest first."""
    return list(getattr(model, ATTRIBUTE, []))
