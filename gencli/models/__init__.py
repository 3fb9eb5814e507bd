"""Methods, by family."""
