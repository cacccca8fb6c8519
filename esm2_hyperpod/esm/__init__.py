"""The model: ESM-2's sizes, its packed form, FP8, and the folder that a run leaves."""
