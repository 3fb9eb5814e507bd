"""Architectures that know no method."""
