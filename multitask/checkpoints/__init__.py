"""Saving, restoring and copying runs."""
