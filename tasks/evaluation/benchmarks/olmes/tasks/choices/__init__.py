"""Tasks answered by one of several choices (RECIPE I.2)."""
