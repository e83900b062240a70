"""Stages that make a classifier of text: labels by a language model, and a fastText model trained on labels."""
