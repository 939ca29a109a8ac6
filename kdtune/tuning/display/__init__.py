"""Progress of a running sweep."""
