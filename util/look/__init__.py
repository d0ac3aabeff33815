"""What a model sees: features, attention, reconstructions and the figures of them."""
