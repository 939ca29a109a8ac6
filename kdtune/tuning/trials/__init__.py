"""One trial in its process, and its files."""
