"""What the wrappers start: the launcher and the dry run."""
