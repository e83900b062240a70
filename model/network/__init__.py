"""The OLMo 2 transformer, its attention, and tensors that are sharded."""
