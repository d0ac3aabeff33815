"""Files of weights: formats, parameter names, shapes, checkpoints, and loading them into a model."""
