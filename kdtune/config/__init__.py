"""Settings of a run and of a sweep."""
