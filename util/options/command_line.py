"""Command line of the scripts: flags, also from a YAML file, error messages, and exit codes."""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import math
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from util.system import signals


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Wide help; shows a default only if it is a value."""

    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size((110, 0)).columns
        super().__init__(prog, max_help_position=36, width=min(columns, 110))

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shows = action.nargs != 0 and action.default is not None and action.default not in ("", [])
        return super()._get_help_string(action) if shows else action.help


class Parser(argparse.ArgumentParser):
    """Parser with --config, presets, --print_config, and suggestions for misspelled flags; no abbreviations.

    Attributes:
        complete: returns {flag name: value} as the script would use them, for --print_config; may raise
            ValueError.
    """

    def __init__(self, description: str) -> None:
        super().__init__(description=description, allow_abbrev=False, formatter_class=_HelpFormatter)
        self.add_argument(
            "--config", metavar="FILE", default="", help="YAML file of flags; the command line overrides it"
        )
        self.add_argument(
            "--print_config",
            action="store_true",
            default=argparse.SUPPRESS,
            help="print each flag with its value and its origin, and stop",
        )
        self.complete: Callable[[argparse.Namespace], Mapping[str, Any]] = vars
        self.presets: dict[str, dict[str, dict[str, Any]]] = {}  # {flag: {its value: {other flag: value}}}
        self._groups: dict[str, argparse._ActionsContainer] = {"options": self}  # argparse's first group

    def group(self, title: str) -> argparse._ActionsContainer:
        """Return the group `title` of --help, which is made at the first call."""
        if title not in self._groups:
            self._groups[title] = self.add_argument_group(title)
        return self._groups[title]

    def add_preset(self, flag: str, choices: dict[str, dict[str, Any]], *, group: str, help: str) -> None:
        """Add a flag whose value sets other flags.

        A preset only sets flags that its own source (command line or file) leaves unset.

        Args:
            flag: such as --augment.
            choices: {its value: {name of another flag: value}}.
            group: of --help.
            help: text.
        """
        action = self.group(group).add_argument(flag, default=None, choices=list(choices), help=help)
        self.presets[action.dest] = choices

    def format_usage(self) -> str:
        """Return the usage without the flags, which would fill a screen."""
        positional = [action for action in self._actions if not action.option_strings]
        formatter = self._get_formatter()
        formatter.add_usage(None, positional, [])
        return f"{formatter.format_help().rstrip()} [--flag VALUE ...]\n"

    def format_help(self) -> str:
        """Return the help with the usage of `format_usage`."""
        self.usage = self.format_usage().removeprefix("usage: ").strip()
        try:
            return super().format_help()
        finally:
            self.usage = None

    def parse(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """Return the flags: command line before --config file before defaults.

        With --print_config, prints them as `complete` returns them, and exits with code 0.

        Args:
            argv: words; None: those of the process.
        """
        argv = sys.argv[1:] if argv is None else list(argv)
        deciding = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # flags that set defaults
        for name in ("config", *self.presets):
            deciding.add_argument(f"--{name}", default=None)
        typed = vars(deciding.parse_known_args(argv)[0])
        path = typed.pop("config")
        in_file = self._read_config(path) if path else {}
        weak: dict[str, Any] = {}  # values of presets that the file overrides
        strong: dict[str, Any] = {}  # values of presets that override the file
        origins: dict[str, str] = {}
        for name, value in typed.items():
            chosen = in_file.get(name) if value is None else value
            values = self.presets[name].get(str(chosen), {})  # unknown values are refused by parse_args
            (weak if value is None else strong).update(values)
            origins.update(dict.fromkeys(values, f"preset {chosen}"))
        self.set_defaults(**{**weak, **in_file, **strong})
        args, unknown = self.parse_known_args(argv)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._suggest(unknown)}")
        if hasattr(args, "print_config"):
            del args.print_config
            origins.update({name: f"file {path}" for name in in_file.keys() - strong.keys()})
            self._print_config(args, argv, origins)
        return args

    def _suggest(self, words: Iterable[str]) -> str:
        """Return the known flags nearest to the unknown flags among `words`, as the end of a sentence."""
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        near = [
            match
            for flag in flags
            for match in difflib.get_close_matches(flag, self._option_string_actions, n=1)
        ]
        return f"; did you mean {', '.join(near)}?" if near else ""

    def _print_config(
        self, args: argparse.Namespace, argv: Sequence[str], origins: Mapping[str, str]
    ) -> NoReturn:
        """Print a sorted table: name, value in YAML, and origin of each flag; and exit.

        Args:
            args: all flags.
            argv: words of the command line.
            origins: {name: origin} of flags from presets and files.
        """
        try:
            values = self.complete(args)
        except ValueError as error:
            self.error(str(error))
        flags = {word.partition("=")[0] for word in argv if word.startswith("--")}
        typed = {
            action.dest
            for action in self._actions
            if flags & set(action.option_strings)
            or (not action.option_strings and values[action.dest] != action.default)
        }
        rows = [("option", "value", "from")]
        for name in sorted(values):
            value = yaml.safe_dump(values[name], default_flow_style=True, allow_unicode=True, width=math.inf)
            origin = "command line" if name in typed else origins.get(name, "default")
            rows.append((name, value.removesuffix("...\n").strip(), origin))
        name_width, value_width = (max(len(row[column]) for row in rows) for column in range(2))
        for name, value, origin in rows:
            print(f"{name:{name_width}}  {value:{value_width}}  {origin}", flush=True)
        self.exit()

    def _read_config(self, path: str) -> dict[str, Any]:
        """Return {name: value} of a YAML file, each checked as its flag on the command line would be."""
        try:
            entries = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_UniqueKeys)
            if not isinstance(entries, dict):
                raise ValueError("expected lines of the form 'name: value'")
            actions = {
                flag[2:]: action
                for flag, action in self._option_string_actions.items()
                if flag.startswith("--") and action.dest not in ("config", "help", "print_config")
            }
            values: dict[str, Any] = {}
            for name, value in entries.items():
                if name not in actions:
                    near = difflib.get_close_matches(str(name), actions, n=3)
                    raise ValueError(
                        f"unknown name '{name}'" + (f"; did you mean {', '.join(near)}?" if near else "")
                    )
                dest = actions[name].dest  # --cls_token and --global_pool are two names of one
                if dest in values:
                    raise ValueError(f"'{name}' sets {dest} a second time")
                try:
                    values[dest] = _from_yaml(value, actions[name])
                except ValueError as error:
                    raise ValueError(f"'{name}' {error}") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
            self.error(f"--config {path}: {error}")
        return values


def _from_yaml(value: Any, action: argparse.Action) -> Any:
    """Return the value of a flag for a value of a YAML file. Raises ValueError if it does not fit."""
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"is a switch, expected true or false, got {value!r}")
        return value if action.const else not value  # --cls_token stores False
    if value is None:
        if action.default is not None:
            raise ValueError("needs a value")
        return None
    if value is False and "off" in (action.choices or ()):
        value = "off"  # YAML reads the bare word as a boolean
    if isinstance(value, bool):
        raise ValueError(
            f"expected one value, got {value!r} (YAML reads on, off, yes and no as booleans; quote the word)"
        )
    if isinstance(value, dict) or (isinstance(value, list) and action.nargs is None):
        raise ValueError(f"expected one value, got {value!r}")
    words = [str(item) for item in (value if isinstance(value, list) else [value])]
    if not words and action.nargs != "*":
        raise ValueError("expected at least one value, got []")
    if isinstance(action.nargs, int) and len(words) != action.nargs:
        raise ValueError(f"expected {action.nargs} values, got {value!r}")
    parsed = [_from_word(word, action) for word in words]
    return parsed[0] if action.nargs is None else parsed


def _from_word(word: str, action: argparse.Action) -> Any:
    """Return a word of the command line as the flag's type. Raises ValueError as argparse would."""
    try:
        value = action.type(word) if callable(action.type) else word
    except ValueError:
        kind = getattr(action.type, "__name__", "kind of")
        raise ValueError(f"has an invalid {kind} value: {word!r}") from None
    if action.choices is not None and value not in action.choices:
        choices = ", ".join(map(str, action.choices))
        raise ValueError(f"has an invalid choice: {word!r} (choose from {choices})")
    return value


class _UniqueKeys(yaml.SafeLoader):
    """YAML loader that rejects duplicate names; PyYAML would take the last value."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [str(key.value) for key, _ in node.value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            problem = f"{', '.join(twice)} stands twice"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


def renew_signal_handlers() -> None:
    """Restore Python's handlers of SIGTERM and SIGHUP, because Paddle replaces them when it is imported."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.getsignal(number))


def run(
    main: Callable[[argparse.Namespace], Any],
    parser: Parser,
    *,
    stoppable: bool = False,
    cleans_up: bool = False,
) -> None:
    """Parse the command line and call `main(args)`.

    Errors that a user can fix are printed as one sentence, with exit code 2.

    Args:
        main: of the script.
        parser: of the script.
        stoppable: SIGTERM and SIGINT raise util.system.signals.Stopped, which has an exit code of its own.
        cleans_up: SIGTERM and SIGHUP raise SystemExit, so that unfinished files are removed. Not for scripts
            with worker processes, which would inherit the handlers.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # None if it is closed
        sys.stdout.reconfigure(errors="surrogateescape")  # prints names that are not UTF-8
    try:
        args = parser.parse()
        if getattr(args, "dry_run", False) and getattr(args, "eval", False):
            parser.error("--dry_run: examines training, not --eval; remove one of them")
        if stoppable:
            signals.listen()
        if cleans_up:
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # set by nohup
                    signal.signal(number, lambda number, frame: sys.exit(128 + number))
        main(args)
    except signals.Stopped as stop:
        print(f"{parser.prog}: {stop}", file=sys.stderr, flush=True)
        sys.exit(signals.EXIT_CODE)
    except KeyboardInterrupt:
        more = "; --resume auto continues from the last checkpoint, if there is one" if stoppable else ""
        print(f"{parser.prog}: interrupted{more}", file=sys.stderr, flush=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as `head`, has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, FloatingPointError) as error:
        # Our modules raise these with a message for the user. From other modules they are bugs: show the
        # traceback.
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if Path(__file__).resolve().parents[2] not in raised_in.parents or "site-packages" in raised_in.parts:
            raise
        print(f"{parser.prog}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
            raise  # a bug, not the state of a disk
        place = error.filename or "a file"
        print(
            f"{parser.prog}: error: {place}: {error.strerror}. What was written before is whole",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(2)
