"""The pipeline, its cluster settings, and how it runs on one machine."""
