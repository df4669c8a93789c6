"""Papers of the family layers, one file each."""
