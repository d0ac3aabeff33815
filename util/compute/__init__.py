"""How operations run on this machine: threads, oneDNN, precision, compilation."""
