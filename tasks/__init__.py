"""The stages of the recipe: one file per stage, each a pure function from artifacts and a config to one artifact."""
