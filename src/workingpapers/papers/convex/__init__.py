"""Papers of the family convex, one file each."""
