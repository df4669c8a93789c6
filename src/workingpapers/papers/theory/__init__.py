"""Papers of the family theory, one file each."""
