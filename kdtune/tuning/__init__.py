"""Many trials. Ray is imported in this room and nowhere else, search-space modules aside."""
