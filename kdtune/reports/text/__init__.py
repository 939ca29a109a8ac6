"""Tables and sentences as text."""
