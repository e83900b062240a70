"""Evaluation stages: checkpoints to scores, scores to the report."""
