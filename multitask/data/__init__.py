"""From files and hub datasets to the tensors of a step."""
