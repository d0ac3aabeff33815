"""HTTP service around a classifier."""
