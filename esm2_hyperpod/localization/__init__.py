"""Step 4: where in the cell a protein lives."""
