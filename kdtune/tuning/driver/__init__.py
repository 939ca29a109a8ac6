"""The process that runs a sweep."""
