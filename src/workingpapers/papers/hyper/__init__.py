"""Papers of the family hyper, one file each."""
