"""Between data and the space a model lives in."""
