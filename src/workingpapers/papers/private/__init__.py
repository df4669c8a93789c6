"""Papers of the family private, one file each."""
