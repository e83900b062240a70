"""Numerics only: tensors in, tensors out. Nothing here knows about stores, stages, Prefect or Ray."""
