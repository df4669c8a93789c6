"""Papers of the family geometry, one file each."""
