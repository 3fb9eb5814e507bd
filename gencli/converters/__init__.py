"""A run in other formats, and other formats as runs."""
