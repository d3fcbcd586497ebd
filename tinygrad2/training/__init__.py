"""One training run: its configuration, checkpoints, memory plan, validation and report."""
