"""The model that ships with the project: its recipe, its weights and their evaluation."""
