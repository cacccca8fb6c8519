"""Step 0: FASTA from anywhere -> csv/x000.csv, x001.csv, ..."""
