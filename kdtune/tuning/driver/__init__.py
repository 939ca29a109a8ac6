"""The driver of a sweep: checks, rules of resuming, the process that runs trials, results."""
