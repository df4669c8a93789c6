"""Papers of the family graphs, one file each."""
