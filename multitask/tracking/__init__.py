"""The output of a run: its folder, logged metrics, experiment trackers and HTML report."""
