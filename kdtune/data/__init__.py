"""Images: where they are, how they are split, and how they reach the loop."""
