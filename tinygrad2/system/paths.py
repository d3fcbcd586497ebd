"""Where the project is on disk. Imports nothing of it."""

import os

# the folder that holds tinygrad2, ops, models and train_gpt2.py: the checkout, or site-packages
PROJECT_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
