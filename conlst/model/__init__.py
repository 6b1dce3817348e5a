"""Backbones, the encoder with its two heads, and the folder a model is kept in."""
