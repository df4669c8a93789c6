"""Papers of the family operators, one file each."""
