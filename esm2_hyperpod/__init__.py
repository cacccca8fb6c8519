"""What the numbered scripts share; one concept a file."""

__version__ = "0.1.0"
