"""gencli trains, samples, evaluates and converts every kind of deep generative model."""

__version__ = "0.1.0"
