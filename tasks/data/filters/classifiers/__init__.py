"""Rules on what a trained model says of a text: its quality, its educational value, its language."""
