"""What several tests use: commands, stub clusters, example data."""
