"""What a run leaves in its output folder, and what can be read from it."""
