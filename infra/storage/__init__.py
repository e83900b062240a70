"""Objects under one root, and scratch folders on the machine."""
