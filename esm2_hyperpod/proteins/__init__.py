"""Labelled proteins: reading, similarity, splits."""
