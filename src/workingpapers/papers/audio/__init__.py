"""Papers of the family audio, one file each."""
