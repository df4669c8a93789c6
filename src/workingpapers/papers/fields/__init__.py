"""Papers of the family fields, one file each."""
