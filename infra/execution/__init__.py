"""One attempt at a stage, the plan of a run, and Prefect as the engine."""
