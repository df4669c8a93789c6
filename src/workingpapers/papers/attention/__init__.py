"""Papers of the family attention, one file each."""
