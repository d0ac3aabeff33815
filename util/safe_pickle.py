"""Read a pickle of arrays and plain containers, and nothing else: a hostile file cannot run code."""
import collections
import pickle
import struct

import numpy as np


class Namespace(dict):
    """Stands in for argparse.Namespace, in which the official code keeps a run's options."""

    def __setstate__(self, state):
        self.update(state)


def _encode(text, encoding="latin1"):
    """What protocol 2 pickles call to bring bytes back."""
    return text.encode(encoding)


ADMITTED = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): _encode,
            ("collections", "OrderedDict"): collections.OrderedDict, ("builtins", "tuple"): tuple,
            ("__builtin__", "tuple"): tuple,  # its name in protocol 2
            ("argparse", "Namespace"): Namespace}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before and since numpy 2
    ADMITTED[_module, "_reconstruct"] = np.empty(0).__reduce__()[0]
    ADMITTED[_module, "scalar"] = np.float32(0).__reduce__()[0]


class ForbiddenError(pickle.UnpicklingError):
    """A file that asks for something that could run code; the message says for what."""


class Unpickler(pickle._Unpickler):
    """Finds nothing but what `admitted` lists; a format with names of its own derives from it and adds them.

    It is the one that pickle has in Python, since that in C cannot be told what to do about the state of a dtype.
    """

    admitted = ADMITTED
    dispatch = dict(pickle._Unpickler.dispatch)

    def load(self):
        try:
            return super().load()
        except (struct.error, SyntaxError) as error:  # a number cut short; a type's name that numpy cannot parse
            raise pickle.UnpicklingError(f"it is damaged ({error})") from error

    def find_class(self, module, name):
        if (module, name) not in self.admitted:
            raise ForbiddenError(f"it asks for {module}.{name}, which is neither an array nor a plain container")
        return self.admitted[module, name]

    def load_build(self):
        # numpy believes the state of a dtype: with forged fields or flags, bytes of the file would become pointers.
        dtype, state = self.stack[-2:]
        if isinstance(dtype, np.dtype):
            if dtype.kind not in "biufc":
                raise ForbiddenError(f"it has an array of {dtype}, which are not numbers")
            self.stack[-1] = (3, state[1], None, None, None, -1, -1, 0)  # of the state only the byte order
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def load(file):
    """The object in an open binary file.

    Raises ForbiddenError, a pickle.UnpicklingError, for a file that asks for anything but arrays and plain containers,
    and what pickle raises for a damaged one (UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError,
    ...).
    """
    return Unpickler(file).load()
