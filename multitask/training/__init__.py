"""Parts of the loop: optimizer, loss weighting, gradient similarity, early stopping, processes, signals."""
