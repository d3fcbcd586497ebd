"""Ranks that train together: launch, collectives, gradient reduction."""
