"""Single steps and sweeps in a notebook."""
