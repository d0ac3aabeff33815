"""Write one HTML file about runs: curves, verdicts, reconstructions, classes, settings, differences.

python tools/report.py outputs/demo/finetune        # writes outputs/demo/finetune/report.html
python tools/report.py outputs/a outputs/b --output compared.html --language zh
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.report import html_page, references, run_record, wording
from util.system.atomic_file import atomic_write

RECORDS = Path(__file__).resolve().parent.parent / "records"
GENERATOR = "MAE-Paddle report"


def write(folders: Sequence[Path | str], output: Path | str | None = None, *, language: str = "en") -> Path:
    """Write the report about runs and return its path. Raises ValueError if that is impossible."""
    runs = run_record.read_all(folders)
    if output is None and len(runs) > 1:
        raise ValueError("--output FILE: missing; several runs have no common folder for the report")
    output = Path(output or runs[0].folder / "report.html")
    _check_output(output)
    records = [references.recorded(run, RECORDS) for run in runs]
    text = html_page.page(runs, language=language, records=records, generator=GENERATOR)
    try:
        with atomic_write(output, "w") as f:
            f.write(text)
    except OSError as error:
        raise ValueError(f"--output {output}: cannot be written ({error})") from error
    return output


def _check_output(output: Path) -> None:
    """Raise ValueError if the file exists and is not a report, or cannot be written."""
    try:
        if output.is_dir():
            raise ValueError(
                f"--output {output}: is a folder; name a file in it, such as {output / 'report.html'}"
            )
        if not output.exists():
            return
        with open(output, "rb") as f:
            if GENERATOR.encode() not in f.read(1000):
                raise ValueError(f"--output {output}: exists and is not a report; name another file")
    except OSError as error:
        raise ValueError(f"--output {output}: cannot be written ({error.strerror})") from error


def get_args_parser() -> argparse.ArgumentParser:
    """Define the flags of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folders", nargs="+", metavar="OUTPUT_DIR", help="output folders of training runs")
    parser.add_argument(
        "--output", metavar="FILE", help="path of the report (default for one run: report.html in its folder)"
    )
    parser.add_argument("--language", default="en", choices=wording.LANGUAGES, help="language of the report")
    return parser


def main() -> None:
    """Write the report and print its path."""
    parser = get_args_parser()
    args = parser.parse_args()
    try:
        output = write(args.folders, args.output, language=args.language)
    except ValueError as error:
        parser.error(str(error))
    print(f"wrote {output} ({output.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
