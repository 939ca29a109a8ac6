"""Which trial runs next, and when one ends."""
