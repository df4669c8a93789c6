"""Papers of the family uncertainty, one file each."""
