"""Search spaces, samplers, early stopping, and the budget."""
