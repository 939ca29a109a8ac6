"""The process, its device, its signals and its messages."""
