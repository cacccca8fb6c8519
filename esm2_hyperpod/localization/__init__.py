"""Step 4: fine-tuning for places in the cell, a label a residue, or a number a protein."""
