"""Training on Google Cloud: the container's entry point, the job specification, and their settings."""
