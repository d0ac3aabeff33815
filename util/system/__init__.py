"""Files, processes and the console. Importing it does not import Paddle."""
