"""Parts of the training loop: optimizer, loss weighting, gradient similarity, early stopping, processes, signals."""
