"""Papers of the family search, one file each."""
