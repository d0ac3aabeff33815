"""Reading pickles of arrays and plain containers. A hostile file can neither run code nor fill memory.

Every admitted global stands for a function of ours, which checks its arguments. numpy's own reconstructors
are never called with values from the file, because they trust them.

The reader derives from pickle._Unpickler, the Python implementation. It is private, but the C implementation
does not let single instructions be replaced. If a Python release changes it, the tests of tests/faults fail.
"""

import math
import pickle
import re
import struct
import types
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

# Limit of memory: ALLOWANCE + GROWTH * bytes of the file. Usual files need 2 * their bytes.
ALLOWANCE, GROWTH = 64 << 20, 16

_KEYS = (str, bytes, int, float, bool, type(None))  # hashing nested tuples can take for ever
_NUMBERS = re.compile(r"[<>=|]?(\?|b1|[iu][1248]|f[248]|c8|c16)")


class ForbiddenError(pickle.UnpicklingError):
    """A file that asks for something that could run code. The message says for what."""


class Namespace(dict):
    """Stand-in for argparse.Namespace, in which the official code keeps a run's options."""

    def __setstate__(self, state: dict) -> None:
        self.update(state)


def printable(text: object, most: int = 100) -> str:
    """Return text from a file for a terminal: control characters escaped, at most `most` characters."""
    text = str(text)
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:most])
    return shown + "..." if len(text) > most else shown


def check_volume(wanted: int, size: int, *, allowance: int = ALLOWANCE) -> None:
    """Raise ValueError if `wanted` bytes of memory are out of proportion to a file of `size` bytes."""
    if wanted > allowance + GROWTH * size:
        raise ValueError(f"its {size:,} bytes would become more than {wanted:,} in memory")


def _encode(text, encoding="latin1"):
    """Stand-in for _codecs.encode, with which protocol 2 restores bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise ForbiddenError(f"it asks for the text encoding {printable(encoding)}")
    return text.encode(encoding)


def _no_bytes():
    """Stand-in for bytes, with which protocol 2 restores bytes of length 0."""
    return b""


def _tuple(items=()):
    """Stand-in for tuple, with which Paddle restores the pair of a tensor's name and values."""
    if not isinstance(items, tuple):
        raise pickle.UnpicklingError("a tuple is made from something other than a tuple")
    return items


def _ordered_dict(pairs=()):
    if any(not isinstance(key, _KEYS) for key, _ in pairs):
        raise pickle.UnpicklingError("a dict has a key that is neither text nor a number")
    return dict(pairs)


def _dtype(code, *_):
    code = code.decode("ascii") if isinstance(code, bytes) else code
    if not isinstance(code, str) or not _NUMBERS.fullmatch(code):
        raise ForbiddenError(f"it has an array of {printable(code)}, not of numbers")
    return np.dtype(code, copy=True)  # a copy, whose byte order may be set


def _reconstruct(subtype, shape, _):
    if subtype is not np.ndarray:
        raise ForbiddenError(f"it has an array of the class {printable(subtype)}")
    if not isinstance(shape, tuple) or shape != (0,):
        raise pickle.UnpicklingError("an array begins with a shape")
    return np.ndarray((0,), "b")


def _scalar(dtype, content):
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise pickle.UnpicklingError("a number does not have the bytes of its type")
    return np.frombuffer(content, dtype)[0]


ADMITTED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _ordered_dict,
    ("builtins", "tuple"): _tuple,
    ("__builtin__", "tuple"): _tuple,
    ("__builtin__", "bytes"): _no_bytes,  # in protocol 2
    ("argparse", "Namespace"): Namespace,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before and since numpy 2
    ADMITTED[_module, "_reconstruct"] = _reconstruct
    ADMITTED[_module, "scalar"] = _scalar


class _Remainder:
    """Rest of a file. A length beyond its end raises EOFError before memory is taken for it."""

    def __init__(self, file):
        self.file, start = file, file.tell()
        self.left = self.size = file.seek(0, 2) - start
        file.seek(start)

    def read(self, size):
        if size > self.left:
            raise EOFError("it ends within an object")
        self.left -= size
        return self.file.read(size)

    def readline(self):
        line = self.file.readline()
        self.left -= len(line)
        return line


_Base: Any = pickle._Unpickler  # Any, because the type stubs leave out its private attributes


class Unpickler(_Base):
    """Unpickler that finds only the globals in `admitted`. Formats with more globals derive from it.

    Args:
        file: open binary file that can seek.
        encoding: of strings that Python 2 wrote; "bytes" does not decode them.
        trusted: find and call whatever the file asks for, as plain pickle does.
        on_array: called with each array when it is complete, while the rest is read; not if `trusted`.
    """

    admitted: dict[tuple[str, str], Any] = ADMITTED
    dispatch: dict[int, Callable] = dict(_Base.dispatch)

    def __init__(
        self,
        file: BinaryIO,
        *,
        encoding: str = "ASCII",
        trusted: bool = False,
        on_array: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        remainder = _Remainder(file)
        super().__init__(file if trusted else remainder, encoding=encoding)
        self.size, self.volume, self.trusted, self.on_array = remainder.size, 0, trusted, on_array
        if trusted:
            self.dispatch = _Base.dispatch  # type: ignore[misc] # as pickle does

    def load(self) -> Any:
        """Read the object. Raises ForbiddenError, and the exceptions of pickle."""
        try:
            return super().load()
        except struct.error as error:  # a number cut short
            raise pickle.UnpicklingError(f"it is damaged ({error})") from error

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a global."""
        if self.trusted and ((module, name) not in self.admitted or module.partition(".")[0] == "numpy"):
            return super().find_class(module, name)
        if (module, name) not in self.admitted:
            raise ForbiddenError(
                f"it asks for {printable(f'{module}.{name}')}, which is neither an array "
                "nor a plain container"
            )
        return self.admitted[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Refuse objects outside of the file."""
        raise ForbiddenError("it asks for an object outside of the file (a persistent id)")

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not isinstance(function, types.FunctionType):
            raise ForbiddenError(f"it calls {_name(function)}")
        # A few bytes can refer to a large object many times.
        self._take(
            sum(len(value) for value in arguments if isinstance(value, (str, bytes, tuple, list, dict)))
        )
        self.stack[-1] = function(*arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self) -> None:
        arguments = self.stack.pop()
        if self.stack[-1] is not Namespace or arguments != ():
            raise ForbiddenError(f"it makes an instance of {_name(self.stack[-1])}")
        self.stack[-1] = Namespace()

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_build(self) -> None:
        state = self.stack.pop()
        owner = self.stack[-1]
        if isinstance(owner, np.dtype):
            # Only the byte order is taken: forged fields or flags would turn bytes of the file into pointers.
            order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
            if order not in ("<", ">", "=", "|"):
                raise pickle.UnpicklingError(f"a type of numbers has the byte order {printable(order)}")
            owner.__setstate__((3, order, None, None, None, -1, -1, 0))  # type: ignore[attr-defined]
        elif isinstance(owner, np.ndarray):
            shape, dtype, fortran, content = state[-4:]
            if not (
                owner.shape == (0,)
                and isinstance(shape, tuple)
                and all(type(side) is int and side >= 0 for side in shape)
                and isinstance(dtype, np.dtype)
                and isinstance(content, bytes)
                and math.prod(shape) * dtype.itemsize == len(content)
            ):
                raise pickle.UnpicklingError("an array has another number of values than its shape says")
            self._take(len(content))
            owner.__setstate__((1, shape, dtype, bool(fortran), content))  # type: ignore[arg-type]
            if self.on_array:
                self.on_array(owner)
        elif type(owner) is Namespace and isinstance(state, dict):
            owner.__setstate__(state)
        elif type(owner) is not dict:  # attributes of PyTorch's OrderedDict are dropped
            raise ForbiddenError(f"it sets the state of {_name(type(owner))}")

    dispatch[pickle.BUILD[0]] = load_build

    def load_inst(self) -> None:
        names = [self.readline()[:-1].decode("ascii") for _ in range(2)]
        self.find_class(*names)
        raise ForbiddenError(f"it makes an instance of {'.'.join(names)}")

    dispatch[pickle.INST[0]] = load_inst

    def load_dict(self) -> None:
        items = self.pop_mark()
        _check_keys(items[::2])
        self.append(dict(zip(items[::2], items[1::2], strict=True)))

    dispatch[pickle.DICT[0]] = load_dict

    def load_setitem(self) -> None:
        _check_is_dict(self.stack[-3])
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        _check_is_dict(self.metastack[-1][-1])  # items after the last mark are in self.stack
        _check_keys(self.stack[::2])
        super().load_setitems()

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_additems(self) -> None:
        _check_keys(self.stack)
        super().load_additems()

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        _check_keys(items)
        self.append(frozenset(items))

    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def _take(self, length):
        self.volume += length
        check_volume(self.volume, self.size)


def _refusing(what):
    def refuse(self):
        raise ForbiddenError(f"it asks for {what}")

    return refuse


for _opcodes, _what in (
    ((pickle.OBJ, pickle.NEWOBJ_EX), "an instance made with arguments"),
    ((pickle.EXT1, pickle.EXT2, pickle.EXT4), "an object by its number in copyreg"),
    ((pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER), "a buffer of protocol 5"),
):
    Unpickler.dispatch.update({opcode[0]: _refusing(_what) for opcode in _opcodes})


def _name(value):
    return printable(getattr(value, "__qualname__", None) or repr(type(value)))


def _check_keys(keys):
    if not all(isinstance(key, _KEYS) for key in keys):
        raise pickle.UnpicklingError("a dict has a key that is neither text nor a number")


def _check_is_dict(value):
    if type(value) not in (dict, Namespace):
        raise pickle.UnpicklingError("it sets an entry of something other than a dict")


def load(
    file: BinaryIO, *, trusted: bool = False, on_array: Callable[[np.ndarray], None] | None = None
) -> Any:
    """Read the object in an open file; see Unpickler for the arguments.

    Raises ForbiddenError if the file asks for anything but arrays and plain containers. A damaged file raises
    an exception of pickle (UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, ...), and
    a `trusted` one any exception.
    """
    return Unpickler(file, trusted=trusted, on_array=on_array).load()
