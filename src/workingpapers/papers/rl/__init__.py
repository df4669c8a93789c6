"""Papers of the family rl, one file each."""
