"""From files of text or tokens to batches: texts are tokenized once, token files are mapped."""
