"""Papers of the family training, one file each."""
