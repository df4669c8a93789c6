"""Papers of the family verify, one file each."""
