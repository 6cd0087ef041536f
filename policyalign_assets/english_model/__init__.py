"""An adapter that teaches SmolLM2-135M to read a policy: its data, its recipe, its evaluation and its weights."""
