"""The command line of the scripts. Only scripts import it."""
