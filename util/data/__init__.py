"""Sources of images, and loaders that make batches of them."""
