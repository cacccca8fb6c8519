"""Steps 2 and 3: from tokenized sequences to packs, batches, losses and a trained model."""
