"""What the units of a network do on data: one forward and one backward sweep, all statistics streaming."""
