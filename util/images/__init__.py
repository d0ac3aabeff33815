"""Image files to upright pixels to augmented, normalised arrays. Importing it does not import Paddle."""
