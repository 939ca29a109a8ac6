"""Files, cached arrays, and folders elsewhere."""
