"""What is watched while a training runs: progress, metrics, outliers, non-finite values."""
