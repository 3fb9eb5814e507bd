"""What is measured of an image: inverse problems are posed by these."""
