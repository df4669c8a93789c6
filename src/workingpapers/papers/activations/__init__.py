"""Papers of the family activations, one file each."""
