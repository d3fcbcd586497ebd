"""The model, built up in the order head -> multihead_attention -> mlp -> block -> gpt; config.py has the sizes.

Simpler ones are bigram, mlp_lm and head_lm; families.py lists all.
"""

from models.config import GPTConfig
from models.families import PRESETS
from models.gpt import GPT

__all__ = ["GPT", "GPTConfig", "PRESETS"]
