"""Sizes that follow from a recipe before it runs, and what they must fit into."""
