"""A recipe at small size: its rule, its samples, what a rehearsal found."""
