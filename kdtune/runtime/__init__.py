"""The process, the device, and what is printed."""
