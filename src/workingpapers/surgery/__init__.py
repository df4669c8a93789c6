"""Surgery: finding and replacing parts of a user's own model."""

from workingpapers.surgery.changes import changes, note_changes

__all__ = ["changes", "note_changes"]
