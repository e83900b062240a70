"""Rules on counts of a text: its length, its repetitions, its words and symbols."""
