"""The shared encoder with a head for each task: built, adapted, called, exported."""
