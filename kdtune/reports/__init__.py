"""Tables, figures and the page of a sweep. Needs neither torch nor ray."""
