"""Files, written atomically and checked before they are trusted; and containers of arrays."""
