"""From bytes to upright pixels to augmented, normalized arrays. Importing it does not import Paddle."""
