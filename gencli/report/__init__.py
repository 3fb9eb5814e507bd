"""Pictures, plots and cards."""
