"""The choice of the next trial, and the end of running ones."""
