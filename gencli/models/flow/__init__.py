"""Normalising flows: invertible maps from data to noise, with exact densities."""
