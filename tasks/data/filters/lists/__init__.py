"""Rules on listed words and addresses."""
