"""Papers of the family recommend, one file each."""
