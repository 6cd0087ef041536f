"""The small model that ships with the project: the recipe that trained it, its weights and their evaluation."""
