"""An adapter that teaches SmolLM2-135M to read a policy: data, training, evaluation and weights."""
