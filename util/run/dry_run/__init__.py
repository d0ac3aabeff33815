"""Checks of --dry_run: data, schedule, memory, disk and time of a run, without writing anything."""
