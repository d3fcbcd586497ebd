"""The lessons, and what builds notebooks from them; see learn/README.md."""
