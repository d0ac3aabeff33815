"""The command line of the scripts: flags, presets and settings. Only scripts import it."""
