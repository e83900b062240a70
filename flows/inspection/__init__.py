"""Looking at what was made: artifacts, documents, steps, stability and cost."""
