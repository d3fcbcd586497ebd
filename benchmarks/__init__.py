"""Speed, measured side by side with the rival on the machine at hand: train, ops, decode, tokenizer."""
