"""Rooms of one subject each, below the models and engines; README.md has their table."""
