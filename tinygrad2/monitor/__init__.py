"""Monitoring of a training: progress, metrics, outliers, reference curves, values that are not finite."""
