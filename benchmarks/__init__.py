"""How fast it is, beside what others use: one module per question, run as python -m benchmarks.NAME."""
