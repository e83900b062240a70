"""Two models on the items that both answered."""
