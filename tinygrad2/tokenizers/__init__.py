"""From text to token ids and back: byte-pair encoding, its parts, and everyone's tokenizer files."""
