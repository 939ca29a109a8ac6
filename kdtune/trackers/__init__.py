"""Programs that show the figures of trials."""
