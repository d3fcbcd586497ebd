"""Speed, compared with PyTorch and other libraries on the same machine: train, ops, decode, tokenizer."""
