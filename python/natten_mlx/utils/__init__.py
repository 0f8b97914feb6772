"""Helpers that need no attention."""
