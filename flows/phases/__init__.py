"""The phases of a recipe: which stage gets which artifact, in each."""
