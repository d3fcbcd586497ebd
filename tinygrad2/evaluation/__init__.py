"""How good a model is: scores of continuations, HellaSwag, perplexity."""
