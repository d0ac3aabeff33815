"""Pickles that run code or try to, as opcodes, with the global that each asks for.

Most leave a marker, which is a file, if anything in them runs. `arm` prepares what a few of them need.
"""

import copyreg
import io
import marshal
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np

LEGACY_HEAD = b"".join(
    pickle.dumps(value, protocol=2)
    for value in (
        0x1950A86A20F9469CFC6C,
        1001,
        {"protocol_version": 1001, "little_endian": True, "type_sizes": {}},
    )
)
RECONSTRUCT = np.empty(0).__reduce__()[0]  # its module is another since numpy 2
EXTENSION = 240  # a number in copyreg that is nobody's


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def name(module, attribute):
    return text(module) + text(attribute) + b"\x93"


def group(*items):
    return b"(" + b"".join(items) + b"t"


def call(function, *arguments):
    return function + group(*arguments) + b"R"


def opcodes(value, protocol=4):
    """Those of a value that pickle can write, without beginning, frame and end."""
    stream = io.BytesIO()
    pickler = pickle._Pickler(stream, protocol)
    pickler.framer.start_framing = lambda: None
    pickler.fast = True  # no memo, whose numbers would meet those around it
    pickler.dump(value)
    return stream.getvalue()[2:-1]


class Runs:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


def pickles(folder):
    """Return {title: (opcodes, global they ask for, True if plain pickle runs them)}; the marker is FOLDER/TITLE."""
    made = {}

    def add(title, make, asks, armed=True):
        marker = Path(folder, title)
        made[title] = (
            make(f"touch '{marker}'", f"open({str(marker)!r}, 'w').close()", str(marker)),
            asks,
            armed,
        )

    os_module = call(name("importlib", "import_module"), text("os"))
    system = name("os", "system")
    add("os.system", lambda shell, code, marker: call(system, text(shell)), "os.system")
    add(
        "posix.system", lambda shell, code, marker: call(name("posix", "system"), text(shell)), "posix.system"
    )
    add("global opcode", lambda shell, code, marker: call(b"cos\nsystem\n", text(shell)), "os.system")
    add("inst opcode", lambda shell, code, marker: b"(" + text(shell) + b"ios\nsystem\n", "os.system")
    add(
        "obj opcode",
        lambda shell, code, marker: b"(" + name("subprocess", "Popen") + opcodes(["touch", marker]) + b"o",
        "subprocess.Popen",
    )
    add(
        "newobj",
        lambda shell, code, marker: name("subprocess", "Popen") + group() + b"\x81",
        "subprocess.Popen",
        False,
    )
    add(
        "newobj_ex",
        lambda shell, code, marker: name("subprocess", "Popen") + b")}\x92",
        "subprocess.Popen",
        False,
    )
    add(
        "newobj of an admitted class",
        lambda shell, code, marker: name("numpy", "ndarray") + b"K\x09\x85\x85\x81",
        "an instance of ndarray",
        False,
    )
    add(
        "popen",
        lambda shell, code, marker: call(name("subprocess", "Popen"), opcodes(["touch", marker])),
        "subprocess.Popen",
    )
    add(
        "check_output",
        lambda shell, code, marker: call(name("subprocess", "check_output"), opcodes(["touch", marker])),
        "subprocess.check_output",
    )
    add("eval", lambda shell, code, marker: call(name("builtins", "eval"), text(code)), "builtins.eval")
    add("exec", lambda shell, code, marker: call(name("builtins", "exec"), text(code)), "builtins.exec")
    add(
        "eval of paddle",
        lambda shell, code, marker: call(name("builtins", "eval"), text(code), opcodes({"data": 1})),
        "builtins.eval",
    )  # as Paddle pickles a LoDTensor
    add(
        "getattr",
        lambda shell, code, marker: call(
            call(name("builtins", "getattr"), os_module, text("system")), text(shell)
        ),
        "builtins.getattr",
    )
    add(
        "importlib",
        lambda shell, code, marker: (
            os_module
            + b"q\x090"
            + call(call(name("builtins", "getattr"), b"h\x09", text("system")), text(shell))
        ),
        "importlib.import_module",
    )
    add(
        "__import__",
        lambda shell, code, marker: (
            call(name("builtins", "__import__"), text("os")) + b"0" + call(system, text(shell))
        ),
        "builtins.__import__",
    )
    add(
        "attrgetter",
        lambda shell, code, marker: call(
            call(call(name("operator", "attrgetter"), text("system")), os_module), text(shell)
        ),
        "operator.attrgetter",
    )
    add(
        "methodcaller",
        lambda shell, code, marker: call(
            call(name("operator", "methodcaller"), text("system"), text(shell)), os_module
        ),
        "operator.methodcaller",
    )
    add(
        "partial",
        lambda shell, code, marker: call(call(name("functools", "partial"), system, text(shell))),
        "functools.partial",
    )
    add(
        "map",
        lambda shell, code, marker: call(
            name("builtins", "list"), call(name("builtins", "map"), system, opcodes([shell]))
        ),
        "builtins.list",
    )
    add(
        "dotted name",
        lambda shell, code, marker: call(name("pathlib", "os.system"), text(shell)),
        "pathlib.os.system",
    )
    add(
        "dotted name of an admitted class",
        lambda shell, code, marker: (
            call(name("collections", "OrderedDict.fromkeys"), opcodes([])) + b"0" + call(system, text(shell))
        ),
        "collections.OrderedDict.fromkeys",
    )
    add(
        "numpy.load",
        lambda shell, code, marker: call(
            name("numpy", "load"), text(str(Path(folder, "objects.npy"))), b"N", b"\x88"
        ),
        "numpy.load",
    )
    add(
        "array of objects",
        lambda shell, code, marker: opcodes(np.array([Runs(shell)], dtype=object)),
        "an array of O8",
    )
    add(
        "runstring of numpy",
        lambda shell, code, marker: call(name("numpy.testing._private.utils", "runstring"), text(code), b"}"),
        "numpy.testing._private.utils.runstring",
    )
    add(
        "odd subtype",
        lambda shell, code, marker: call(
            name(RECONSTRUCT.__module__, "_reconstruct"),
            name("numpy", "memmap"),
            opcodes((0,)),
            opcodes(b"b"),
        ),
        "numpy.memmap",
        False,
    )
    add(
        "forged dtype",
        lambda shell, code, marker: (
            call(name("numpy", "dtype"), text("V8"), b"\x89", b"\x88")
            + group(
                b"K\x03",
                text("|"),
                b"N",
                opcodes(("o",)),
                b"}"
                + text("o")
                + group(call(name("numpy", "dtype"), text("O"), b"\x89", b"\x88"), b"K\x00")
                + b"s",
                b"K\x08",
                b"K\x01",
                b"K\x3f",
            )
            + b"b"
        ),
        "an array of V8",
        False,
    )
    add(
        "admitted class",
        lambda shell, code, marker: call(name("numpy", "ndarray"), opcodes((10**12,))),
        "it calls ndarray",
        False,
    )
    add(
        "codecs.open",
        lambda shell, code, marker: call(name("codecs", "open"), text(marker), text("w")),
        "codecs.open",
    )
    add(
        "codec",
        lambda shell, code, marker: (
            call(name("_codecs", "encode"), text("x" * 9), text("punycode"))
            + b"0"
            + call(system, text(shell))
        ),
        "the text encoding punycode",
    )
    add(
        "reconstructor",
        lambda shell, code, marker: (
            call(
                name("copyreg", "_reconstructor"),
                name("string", "Formatter"),
                name("builtins", "object"),
                b"N",
            )
            + b"0"
            + call(system, text(shell))
        ),
        "copyreg._reconstructor",
    )
    add(
        "extension",
        lambda shell, code, marker: call(b"\x82" + bytes([EXTENSION]), text(shell)),
        "an object by its number in copyreg",
    )
    add(
        "state of an admitted object",
        lambda shell, code, marker: (
            call(name("collections", "OrderedDict"))
            + b"}"
            + text("__setstate__")
            + system
            + b"sb"
            + text(shell)
            + b"b"
        ),
        "os.system",
    )
    add(
        "rebuilt by anything",
        lambda shell, code, marker: call(
            name("torch._utils", "_rebuild_from_type_v2"),
            system,
            name("builtins", "int"),
            group(text(shell)),
            b"N",
        ),
        "torch._utils._rebuild_from_type_v2",
    )
    add(
        "tensor on a foreign storage",
        lambda shell, code, marker: (
            call(system, text(shell))
            + b"q\x090"
            + call(
                name("torch._utils", "_rebuild_tensor_v2"), b"h\x09", b"K\x00", opcodes((1,)), opcodes((1,))
            )
        ),
        "os.system",
    )
    add(
        "persistent id",
        lambda shell, code, marker: (
            group(text("storage"), call(system, text(shell)), text("0"), text("cpu"), b"K\x01") + b"Q"
        ),
        "os.system",
    )
    add(
        "function of bytes",
        lambda shell, code, marker: call(
            call(
                name("types", "FunctionType"),
                call(name("marshal", "loads"), opcodes(marshal.dumps(compile(code, "", "exec")))),
                call(name("builtins", "globals")),
            )
        ),
        "types.FunctionType",
    )
    add(
        "pickle in a pickle",
        lambda shell, code, marker: call(name("pickle", "loads"), opcodes(pickle.dumps(Runs(shell)))),
        "pickle.loads",
    )
    add(
        "run_path",
        lambda shell, code, marker: call(name("runpy", "run_path"), text(str(Path(folder, "script.py")))),
        "runpy.run_path",
    )
    add(
        "timeit",
        lambda shell, code, marker: call(name("timeit", "timeit"), text("pass"), text(code)),
        "timeit.timeit",
    )
    add(
        "library",
        lambda shell, code, marker: call(name("ctypes", "CDLL"), text("libc.so.6")),
        "ctypes.CDLL",
        False,
    )
    return made


def arm(folder):
    """Create what the pickles need to run: files in `folder`, and a number in this process's copyreg."""
    np.save(
        Path(folder, "objects.npy"), np.array([Runs(f"touch '{Path(folder, 'numpy.load')}'")], dtype=object)
    )
    Path(folder, "script.py").write_text(f"open({str(Path(folder, 'run_path'))!r}, 'w').close()\n")
    # the two functions do with their arguments what PyTorch's do
    (Path(folder) / "torch").mkdir(exist_ok=True)
    Path(folder, "torch", "__init__.py").touch()
    Path(folder, "torch", "_utils.py").write_text(
        "def _rebuild_from_type_v2(func, new_type, args, state):\n    return func(*args)\n\n\n"
        "def _rebuild_tensor_v2(*args):\n    return args\n"
    )
    if ("os", "system") not in copyreg._extension_registry:
        copyreg.add_extension("os", "system", EXTENSION)


def whole(payload):
    """A pickle of weights, with the payload among what else a checkpoint has."""
    return (
        b"\x80\x04}(" + text("args") + payload + text("model") + opcodes({"w": np.ones(3, "float32")}) + b"u."
    )


def zipped(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for member, content in members.items():
            archive.writestr(member.replace("__", "/"), content)
    return stream.getvalue()


# The files in which a pickle comes: name, and its content for one.
ENVELOPES = {
    "checkpoint.pd": lambda data: data,
    "weights.pdparams": lambda data: data,
    "legacy.pth": lambda data: LEGACY_HEAD + data + pickle.dumps([], protocol=2),
    "archive.pth": lambda data: zipped(archive__data_pkl=data).replace(b"data_pkl", b"data.pkl"),
}


def run_all(folder):
    """Load each as plain pickle does, whatever comes of it; for a process of its own."""
    arm(folder)
    for payload, *_ in pickles(folder).values():
        try:
            pickle.loads(whole(payload))
        except Exception:  # after it has run
            pass


if __name__ == "__main__":
    import sys

    sys.path.insert(0, sys.argv[1])
    run_all(sys.argv[1])
