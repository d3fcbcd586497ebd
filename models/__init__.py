"""The model, built up in the order head -> multihead_attention -> mlp -> block -> gpt; config.py has the sizes."""

from models.config import PRESETS, GPTConfig
from models.gpt import GPT

__all__ = ["GPT", "GPTConfig", "PRESETS"]
