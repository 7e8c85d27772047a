"""Saving, restoring and uploading checkpoints."""
