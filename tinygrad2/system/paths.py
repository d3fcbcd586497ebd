"""Where the project is on disk. Imports nothing of it."""

import pathlib

# the folder that holds tinygrad2, ops, models and train_gpt2.py: the checkout, or site-packages
PROJECT_ROOT = str(pathlib.Path(__file__).absolute().parents[2])
