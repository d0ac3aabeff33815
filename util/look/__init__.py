"""Features, attention and reconstructions of a model, and figures of them."""
