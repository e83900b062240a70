"""Files of documents: Dolma rows, numbered files, partitions, randomness per document."""
