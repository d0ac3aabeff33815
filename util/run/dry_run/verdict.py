"""Verdict of a dry run: lines for the reader, and the reasons against starting the run."""

import json

from util.system import distributed


class Verdict:
    """Prints lines in the first process, and collects reasons against the run in every process."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def line(self, title: str, text: str) -> None:
        """Print a line of the report under a title; an empty title continues the previous line."""
        if distributed.is_main():
            print(f"{title:<12}{text}", flush=True)

    def against(self, reason: str) -> None:
        """Add a reason against the run; "" adds none."""
        if reason and reason not in self.reasons:
            self.reasons.append(reason)

    def end(self) -> None:
        """Print the verdict. Raises ValueError, in all processes, if any of them has reasons."""
        parts = distributed.all_bytes(json.dumps(self.reasons).encode())
        reasons = list(dict.fromkeys(reason for part in parts for reason in json.loads(part)))
        if reasons:
            raise ValueError(
                f"dry run: {len(reasons)} problem(s) with this run:"
                + "".join(f"\n  {number}. {reason}" for number, reason in enumerate(reasons, 1))
            )
        self.line("dry run:", "nothing found that would stop this run")
