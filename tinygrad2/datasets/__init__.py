"""From files of text or tokens to batches."""
