"""Learning: optimizer, step, metrics, loop."""
