"""Answers of models: sampled, verified, paired and judged."""
