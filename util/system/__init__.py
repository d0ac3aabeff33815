"""Files, processes and the console. Nothing here knows of images or models, and importing it does not import Paddle."""
