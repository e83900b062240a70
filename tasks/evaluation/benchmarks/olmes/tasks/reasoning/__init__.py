"""Tasks answered after reasoning: mathematics, code, hard questions (RECIPE I.3, I.4)."""
