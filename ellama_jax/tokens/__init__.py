"""Documents to batches: tokenizer, windows on disk, mixture, loader, SeqIO tasks."""
