"""One trial in its process: inputs, results, checkpoints and weights."""
