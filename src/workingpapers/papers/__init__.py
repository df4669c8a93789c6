"""Papers: one paper, one file, one name, in a folder a family."""
