"""Measures of a training: metrics, stability, memory, speed and profiles."""
