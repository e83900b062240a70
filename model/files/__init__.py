"""Weights in files: Hugging Face folders, configurations, soups."""
