"""Tables of a sweep. Needs neither torch nor ray."""
