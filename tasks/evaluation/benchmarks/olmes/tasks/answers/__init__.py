"""Tasks answered in words, with or without a passage (RECIPE I.3)."""
