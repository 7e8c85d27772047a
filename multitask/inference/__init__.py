"""Prediction with a trained model, from Python or on a file of rows."""
