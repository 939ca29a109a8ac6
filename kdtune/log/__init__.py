"""The log of a sweep, and its folder."""
