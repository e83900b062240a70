"""Losses, optimizer, schedule, the training loop, and what watches over it."""
