"""What training reads: order, windows, batches, labels."""
