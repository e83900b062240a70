"""Data stages: raw sources to documents, documents to tokens and mixes."""
