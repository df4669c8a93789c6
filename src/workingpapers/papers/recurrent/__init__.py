"""Papers of the family recurrent, one file each."""
