"""Denoising models."""
