"""What a recipe costs: GPUs, hours, memory and energy, and the tables that show it."""
