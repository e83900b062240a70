"""Training stages: pre-training, anneals, soups and post-training."""
