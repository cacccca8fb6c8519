"""ESM-2 in use: embeddings, effects of variants, masked residues."""
