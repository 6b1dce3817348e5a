"""Take a sentence-pair classifier trained in English into a language without labels, and keep it there."""

__version__ = "0.1.0"
