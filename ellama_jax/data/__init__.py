"""Text to batches: listings, tokens, windows on disk, the mixture loader."""
