"""What an evaluation asks, the room it has, and how items become scores and suites."""
