"""The command line of every script: options from a YAML file too, errors as sentences, exit codes."""
import argparse
import difflib
import errno
import math
import os
import signal
import sys
import traceback
from pathlib import Path

import yaml

from util.system import signals


class UsageError(Exception):
    """What argparse would say before it exits."""


class Parser(argparse.ArgumentParser):
    """No abbreviations, a list of near names for an unknown one, a --config file, and --print_config."""

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False,
                         formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        self.add_argument("--config", metavar="FILE", default="", help="YAML file of options; the command line wins")
        self.add_argument("--print_config", action="store_true", default=argparse.SUPPRESS,
                          help="print every option with its value and where that is from, and stop")
        self.checking_file = False
        self.complete = lambda args: None  # fills in what is not given, for --print_config; ValueError
        self.presets = {}  # {name of an option: {its value: {name of another: the value that it sets}}}

    def add_preset(self, flag, presets, **more):
        """An option that sets others: on the command line those that are not given there, in a --config file those not there.

        Args:
            presets: {value of this option: {name of another option: value}}.
            more: as for `add_argument`.
        """
        action = self.add_argument(flag, default=None, choices=list(presets), **more)
        self.presets[action.dest] = presets

    def error(self, message):
        if self.checking_file:
            raise UsageError(message)
        super().error(message)

    def parse(self, argv=None):
        """The options; those of a --config file stand where the command line says nothing.

        A preset's stand where that which names it, the command line or the file, says nothing else. With --print_config
        all are printed, as `complete` fills them in, and the process ends with exit code 0.
        """
        argv = sys.argv[1:] if argv is None else list(argv)
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # what decides about defaults
        for name in ("config", *self.presets):
            first.add_argument(f"--{name}", default=None)
        said = vars(first.parse_known_args(argv)[0])
        path = said.pop("config")
        in_file = self._read_config(path) if path else {}
        preset, chosen_here, origins = {}, {}, {}
        for name, typed in said.items():
            value = in_file.get(name) if typed is None else typed
            chosen = self.presets[name].get(value, {})  # a wrong one is refused below, with all other flags
            (preset if typed is None else chosen_here).update(chosen)
            origins.update(dict.fromkeys(chosen, f"preset {value}"))
        self.set_defaults(**{**preset, **in_file, **chosen_here})
        args = self.parse_args(argv)
        if hasattr(args, "print_config"):
            del args.print_config
            try:
                self.complete(args)
            except ValueError as error:
                self.error(str(error))
            origins.update({name: f"file {path}" for name in in_file.keys() - chosen_here.keys()})
            print(self._table(vars(args), argv, origins), flush=True)
            self.exit()
        return args

    def _table(self, values, argv, origins):
        """A line an option, sorted: its name, its value as YAML has it, and where that is from.

        Args:
            origins: {name: where from} of what is not from the command line, and no plain default either.
        """
        flags = {word.partition("=")[0] for word in argv if word.startswith("--")}
        typed = {action.dest for action in self._actions if flags & set(action.option_strings)
                 or (not action.option_strings and values[action.dest] != action.default)}  # without a flag, by place
        rows = [("option", "value", "from")]
        for name in sorted(values):
            value = yaml.safe_dump(values[name], default_flow_style=True, allow_unicode=True, width=math.inf)
            origin = "command line" if name in typed else origins.get(name, "default")
            rows.append((name, value.removesuffix("...\n").strip(), origin))
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        return "\n".join(f"{name:{widths[0]}}  {value:{widths[1]}}  {origin}" for name, value, origin in rows)

    def _read_config(self, path):
        """{name: value} of a YAML file, each checked as the same flag on the command line would be."""
        try:
            entries = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_UniqueKeys)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            self.error(f"--config {path}: {error}")
        if not isinstance(entries, dict):
            self.error(f"--config {path}: expected lines of the form 'name: value'")
        actions = {flag[2:]: action for action in self._actions for flag in action.option_strings
                   if flag.startswith("--") and flag not in ("--config", "--help", "--print_config")}
        values = {}
        for name, value in entries.items():
            if name not in actions:
                near = difflib.get_close_matches(str(name), actions, n=3)
                self.error(f"--config {path}: unknown name '{name}'"
                           + (f"; did you mean {', '.join(near)}?" if near else ""))
            option = actions[name].dest  # --cls_token and --global_pool are two names of one
            if option in values:
                self.error(f"--config {path}: '{name}' sets {option} a second time")
            values[option] = self._check(path, name, value, actions[name])
        return values

    def _check(self, path, name, value, action):
        if action.nargs == 0:  # a switch
            if not isinstance(value, bool):
                self.error(f"--config {path}: '{name}' is a switch, expected true or false, got {value!r}")
            return action.const if value else not action.const
        if value is None:
            if action.default is not None:
                self.error(f"--config {path}: '{name}' needs a value")
            return None
        if value is False and "off" in (action.choices or ()):
            value = "off"  # YAML reads the bare word as a boolean
        words = [str(item) for item in (value if isinstance(value, list) else [value])]
        if isinstance(value, bool):
            self.error(f"--config {path}: '{name}' expected one value, got {value!r} (YAML reads on, off, yes and no "
                       "as booleans; write the word in quotes)")
        if isinstance(value, dict) or (isinstance(value, list) and action.nargs is None):
            self.error(f"--config {path}: '{name}' expected one value, got {value!r}")
        if not words:
            self.error(f"--config {path}: '{name}' expected at least one value, got []")
        self.checking_file = True
        try:
            # One word a value, so that a value that begins with a dash stays one; nothing else is parsed.
            flag = action.option_strings[0]
            if isinstance(action.nargs, int):
                parsed = [getattr(self.parse_args([flag, *words]), action.dest)]
            else:
                parsed = [getattr(self.parse_args([f"{flag}={word}"]), action.dest) for word in words]
        except UsageError as error:
            self.checking_file = False
            self.error(f"--config {path}: '{name}': {error}")
        finally:
            self.checking_file = False
        return parsed[0] if action.nargs is None else [item for values in parsed for item in values]


class _UniqueKeys(yaml.SafeLoader):
    """A name that stands twice in a file is an error; PyYAML would take the last."""

    def construct_mapping(self, node, deep=False):
        names = [str(key.value) for key, _ in node.value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{', '.join(twice)} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def renew_signal_handlers():
    """Put Python's own handlers of SIGTERM and SIGHUP back: Paddle sets others when it is imported."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.getsignal(number))


def run(main, parser, *, stoppable=False, cleans_up=False):
    """Parse the command line and call `main(args)`; an error that a user can mend is a sentence, with exit code 2.

    Args:
        stoppable: whether SIGTERM and SIGINT end it by util.system.signals.Stopped, with an exit code of its own.
        cleans_up: whether SIGTERM and SIGHUP end it by an exception, as SIGINT does, so that what it has begun to write is
            removed. Not for scripts with worker processes, which would inherit that.
    """
    if sys.stdout is not None:  # that is closed
        sys.stdout.reconfigure(errors="surrogateescape")  # a file name that is not UTF-8 is printed as it is
    try:
        args = parser.parse()
        if getattr(args, "dry_run", False) and getattr(args, "eval", False):
            parser.error("--dry_run is about training; leave it out to evaluate, or leave out --eval")
        if stoppable:
            signals.listen()
        if cleans_up:
            for number in (signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves it
                    signal.signal(number, lambda number, frame: sys.exit(128 + number))
        main(args)
    except signals.Stopped as stop:
        print(f"{parser.prog}: {stop}", file=sys.stderr, flush=True)
        sys.exit(signals.EXIT_CODE)
    except KeyboardInterrupt:
        more = "; --resume auto continues from the last checkpoint, if there is one" if stoppable else ""
        print(f"{parser.prog}: interrupted{more}", file=sys.stderr, flush=True)
        sys.exit(130)
    except BrokenPipeError:  # whoever read what is printed has seen enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, FloatingPointError) as error:
        # Our own modules raise these with a sentence for the user. From anywhere else they are bugs: show where.
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        if Path(__file__).resolve().parents[2] not in raised_in.parents or "site-packages" in raised_in.parts:
            raise
        print(f"{parser.prog}: error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
            raise  # not the state of a disk, but a bug
        print(f"{parser.prog}: error: {error.filename or 'a file'}: {error.strerror}. What was written before is whole",
              file=sys.stderr, flush=True)
        sys.exit(2)
