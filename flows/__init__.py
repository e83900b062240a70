"""Wiring only: which stage gets which artifact. Read flows/recipe.py first."""
