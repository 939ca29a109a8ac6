"""Estimates of what a sweep will take, before it runs."""
