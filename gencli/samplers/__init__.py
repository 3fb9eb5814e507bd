"""From a model's interface to samples."""
