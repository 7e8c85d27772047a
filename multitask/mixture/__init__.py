"""Which rows make up a step: a pure function of (seed, step)."""
