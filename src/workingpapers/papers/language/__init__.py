"""Papers of the family language, one file each."""
