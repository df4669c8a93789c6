"""Papers of the family sparsity, one file each."""
