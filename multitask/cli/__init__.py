"""Command line: arguments, modes other than training, checkpoint management, console output."""
