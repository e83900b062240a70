"""What the store knows of artifacts: records, leases, save points, and reading through them."""
