"""Numbers about samples and models."""
