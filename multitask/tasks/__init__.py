"""What differs between types of tasks, and a task's rows made ready."""
