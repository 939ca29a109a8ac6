"""Ray sessions, nodes, and placement of trials."""
