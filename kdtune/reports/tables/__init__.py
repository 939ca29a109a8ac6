"""Tables made from the log of a sweep."""
