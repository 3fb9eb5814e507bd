"""Denoisers made of denoisers."""
