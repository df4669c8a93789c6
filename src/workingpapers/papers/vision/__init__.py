"""Papers of the family vision, one file each."""
