"""Surgery: finding and replacing parts of a user's own model."""

from workingpapers.surgery.changes import changes, note_changes
from workingpapers.surgery.edits import undo
from workingpapers.surgery.replace import replace_modules

__all__ = ["changes", "note_changes", "replace_modules", "undo"]
