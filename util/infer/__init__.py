"""From a model file to answers: inference engines, exported models and the HTTP service."""
