"""What a run leaves to look at: its folder, its numbers, the trackers, the report."""
