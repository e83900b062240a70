"""Pure text algorithms used by the data stages: no files, no stores, no randomness without a seed."""
