"""Papers of the family interpret, one file each."""
