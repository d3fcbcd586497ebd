"""From text to token ids and back: byte pair encoding, its parts, and the tokenizer files of other programs."""
