"""Papers of the family science, one file each."""
