"""The command line: arguments, the modes besides training, looking after checkpoints, what is printed."""
