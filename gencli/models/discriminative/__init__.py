"""Models that tell classes apart and make nothing."""
