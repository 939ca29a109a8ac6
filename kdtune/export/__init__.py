"""Files for other projects."""
