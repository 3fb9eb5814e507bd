"""Masked models: all tokens at once from partly masked ones."""
