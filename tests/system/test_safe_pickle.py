"""Pickles of arrays and plain containers are read, and everything else is refused."""

import argparse
import base64
import collections
import io
import os
import pickle
import subprocess

import numpy as np
import paddle
import pytest

from util.system.safe_pickle import ForbiddenError, load

# {"a": float32 [0, 1, 2], "s": numpy.float64(2.5)}, pickled by the versions named.
ARRAYS = {
    "numpy 1.26.4 protocol 4": (
        "gASV4AAAAAAAAAB9lCiMAWGUjBVudW1weS5jb3JlLm11bHRpYXJyYXmUjAxfcmVjb25zdHJ1Y3SUk5SMBW51bXB5lIwHbmRhcnJheZST"
        "lEsAhZRDAWKUh5RSlChLAUsDhZRoBYwFZHR5cGWUk5SMAmY0lImIh5RSlChLA4wBPJROTk5K/////0r/////SwB0lGKJQwwAAAAAAACA"
        "PwAAAECUdJRijAFzlGgCjAZzY2FsYXKUk5RoDowCZjiUiYiHlFKUKEsDaBJOTk5K/////0r/////SwB0lGJDCAAAAAAAAARAlIaUUpR1"
        "Lg=="
    ),
    "numpy 2.4.6 protocol 4": (
        "gASV4QAAAAAAAAB9lCiMAWGUjBZudW1weS5fY29yZS5tdWx0aWFycmF5lIwMX3JlY29uc3RydWN0lJOUjAVudW1weZSMB25kYXJyYXmU"
        "k5RLAIWUQwFilIeUUpQoSwFLA4WUaAWMBWR0eXBllJOUjAJmNJSJiIeUUpQoSwOMATyUTk5OSv////9K/////0sAdJRiiUMMAAAAAAAA"
        "gD8AAABAlHSUYowBc5RoAowGc2NhbGFylJOUaA6MAmY4lImIh5RSlChLA2gSTk5OSv////9K/////0sAdJRiQwgAAAAAAAAEQJSGlFKU"
        "dS4="
    ),
    "numpy 1.26.4 protocol 2": (
        "gAJ9cQAoWAEAAABhcQFjbnVtcHkuY29yZS5tdWx0aWFycmF5Cl9yZWNvbnN0cnVjdApxAmNudW1weQpuZGFycmF5CnEDSwCFcQRjX2Nv"
        "ZGVjcwplbmNvZGUKcQVYAQAAAGJxBlgGAAAAbGF0aW4xcQeGcQhScQmHcQpScQsoSwFLA4VxDGNudW1weQpkdHlwZQpxDVgCAAAAZjRx"
        "DomIh3EPUnEQKEsDWAEAAAA8cRFOTk5K/////0r/////SwB0cRJiiWgFWA0AAAAAAAAAAADCgD8AAABAcRNoB4ZxFFJxFXRxFmJYAQAA"
        "AHNxF2NudW1weS5jb3JlLm11bHRpYXJyYXkKc2NhbGFyCnEYaA1YAgAAAGY4cRmJiIdxGlJxGyhLA2gRTk5OSv////9K/////0sAdHEc"
        "YmgFWAgAAAAAAAAAAAAEQHEdaAeGcR5ScR+GcSBScSF1Lg=="
    ),
    "numpy 2.4.6 protocol 2": (
        "gAJ9cQAoWAEAAABhcQFjbnVtcHkuX2NvcmUubXVsdGlhcnJheQpfcmVjb25zdHJ1Y3QKcQJjbnVtcHkKbmRhcnJheQpxA0sAhXEEY19j"
        "b2RlY3MKZW5jb2RlCnEFWAEAAABicQZYBgAAAGxhdGluMXEHhnEIUnEJh3EKUnELKEsBSwOFcQxjbnVtcHkKZHR5cGUKcQ1YAgAAAGY0"
        "cQ6JiIdxD1JxEChLA1gBAAAAPHERTk5OSv////9K/////0sAdHESYoloBVgNAAAAAAAAAAAAwoA/AAAAQHETaAeGcRRScRV0cRZiWAEA"
        "AABzcRdjbnVtcHkuX2NvcmUubXVsdGlhcnJheQpzY2FsYXIKcRhoDVgCAAAAZjhxGYmIh3EaUnEbKEsDaBFOTk5K/////0r/////SwB0"
        "cRxiaAVYCAAAAAAAAAAAAARAcR1oB4ZxHlJxH4ZxIFJxIXUu"
    ),
}

# paddle.save({"model": layer.state_dict()}, file) of a Linear(1, 2) with weights 0.5 and biases 2.
SAVED = {
    "paddle 2.6.2": (
        "gASVNwEAAAAAAAB9lIwFbW9kZWyUjAtjb2xsZWN0aW9uc5SMC09yZGVyZWREaWN0lJOUKVKUKIwGd2VpZ2h0lIwIYnVpbHRpbnOUjAV0"
        "dXBsZZSTlIwMbGluZWFyXzAud18wlIwVbnVtcHkuY29yZS5tdWx0aWFycmF5lIwMX3JlY29uc3RydWN0lJOUjAVudW1weZSMB25kYXJy"
        "YXmUk5RLAIWUQwFilIeUUpQoSwFLAUsChpRoDowFZHR5cGWUk5SMAmY0lImIh5RSlChLA4wBPJROTk5K/////0r/////SwB0lGKJQwgA"
        "AAA/AAAAP5R0lGKGlIWUUpSMBGJpYXOUaAmMDGxpbmVhcl8wLmJfMJRoDWgQSwCFlGgSh5RSlChLAUsChZRoGolDCAAAAEAAAABAlHSU"
        "YoaUhZRSlHVzLg=="
    ),
    "paddle 3.3.1": (
        "gASVOAEAAAAAAAB9lIwFbW9kZWyUjAtjb2xsZWN0aW9uc5SMC09yZGVyZWREaWN0lJOUKVKUKIwGd2VpZ2h0lIwIYnVpbHRpbnOUjAV0"
        "dXBsZZSTlIwMbGluZWFyXzAud18wlIwWbnVtcHkuX2NvcmUubXVsdGlhcnJheZSMDF9yZWNvbnN0cnVjdJSTlIwFbnVtcHmUjAduZGFy"
        "cmF5lJOUSwCFlEMBYpSHlFKUKEsBSwFLAoaUaA6MBWR0eXBllJOUjAJmNJSJiIeUUpQoSwOMATyUTk5OSv////9K/////0sAdJRiiUMI"
        "AAAAPwAAAD+UdJRihpSFlFKUjARiaWFzlGgJjAxsaW5lYXJfMC5iXzCUaA1oEEsAhZRoEoeUUpQoSwFLAoWUaBqJQwgAAABAAAAAQJR0"
        "lGKGlIWUUpR1cy4="
    ),
}


def loads(data):
    return load(io.BytesIO(data))


def test_arrays_of_both_numpy_generations_are_read_by_either():
    for writer, content in ARRAYS.items():
        found = loads(base64.b64decode(content))
        assert found.keys() == {"a", "s"}, writer
        assert (
            type(found["a"]) is np.ndarray
            and found["a"].dtype == np.float32
            and found["a"].tolist() == [0, 1, 2]
        )
        assert type(found["s"]) is np.float64 and found["s"] == 2.5


def test_what_paddle_saves_is_read():
    for content in SAVED.values():
        model = loads(base64.b64decode(content))["model"]
        assert {name: (generated, array.tolist()) for name, (generated, array) in model.items()} == {
            "weight": ("linear_0.w_0", [[0.5, 0.5]]),
            "bias": ("linear_0.b_0", [2.0, 2.0]),
        }


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_containers_and_arrays_of_this_python(protocol):
    state = {
        "epoch": 3,
        "model": collections.OrderedDict(w=np.eye(2, dtype="int64")),
        "names": ["a", None, True, 1.5],
        "pair": (1, b"x"),
    }
    found = loads(pickle.dumps(state, protocol=protocol))
    assert found["model"].pop("w").tolist() == [[1, 0], [0, 1]]
    assert found == {"epoch": 3, "model": {}, "names": ["a", None, True, 1.5], "pair": (1, b"x")}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_every_protocol_that_paddle_saves_with(tmp_path, protocol):
    path = tmp_path / "weights.pdparams"
    paddle.save({"model": {"w": paddle.to_tensor([1.0, 2.0])}}, str(path), protocol=protocol)
    assert loads(path.read_bytes())["model"]["w"][1].tolist() == [1, 2]


def test_the_official_options_become_a_dict():
    args = argparse.Namespace(lr=0.1, model="mae_vit_base_patch16", nested=argparse.Namespace(x=[1]))
    assert loads(pickle.dumps({"args": args})) == {
        "args": {"lr": 0.1, "model": "mae_vit_base_patch16", "nested": {"x": [1]}}
    }


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Built(Calls):
    """Pickles as a call of `function` and a state for what it returns."""

    def __init__(self, function, arguments, state):
        self.call = function, arguments, state


def array_of(dtype, shape, content):
    """An array as numpy pickles it, with whatever is said of it."""
    return Built(np.empty(0).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, shape, dtype, False, content))


def test_calls_are_refused_by_name_and_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for function, arguments, name in [
        (os.system, ("touch victim",), f"{os.system.__module__}.system"),
        (eval, ("open('victim', 'w')",), "eval"),
        (getattr, ((), "count"), "getattr"),
        (open, ("victim", "w"), "open"),
        (subprocess.Popen, (["touch", "victim"],), "Popen"),
        (np.save, ("victim", 0), "numpy.save"),
        (np.frombuffer, (b"1234",), "numpy.frombuffer"),
    ]:
        for protocol in (2, 4):  # protocol 2 has other names for some modules
            data = pickle.dumps(
                {"model": np.ones(2), "extra": Calls(function, *arguments)}, protocol=protocol
            )
            with pytest.raises(ForbiddenError, match=rf"{name},"):
                loads(data)
    assert os.listdir() == []


# What numpy calls the state of a dtype: version, byte order, subarray, names, fields, size, alignment, flags.
POINTERS = 3, "|", None, ("o",), {"o": (Calls(np.dtype, "O"), 0)}, 8, 1


def test_bytes_do_not_become_pointers():
    """An array of objects made of bytes of the file could point anywhere."""
    refused = 0
    for code, state in [
        ("V8", (*POINTERS, 0)),
        ("V8", (*POINTERS, 63)),
        ("f8", (*POINTERS, 0)),
        ("f8", (*POINTERS, 63)),
        ("O", (3, "|", None, None, None, -1, -1, 0)),
        ("f8", (3, "<", None, None, None, -1, -1, 63)),
    ]:
        data = pickle.dumps(array_of(Built(np.dtype, (code, False, True), state), (1,), b"\1" * 8))
        try:
            found = loads(data)
        except ForbiddenError:
            refused += 1
        else:
            assert found.dtype == np.float64 and found.dtype.flags == 0 and found.dtype.fields is None
    assert refused == 5


def test_a_whole_array_can_be_written_this_way():
    """The tests with `array_of` can fail."""
    assert loads(pickle.dumps(array_of(np.dtype("f4"), (2, 1), np.float32([1, 2]).tobytes()))).tolist() == [
        [1],
        [2],
    ]


def test_a_shape_needs_its_bytes():
    for shape, content in [
        ((10**11,), bytes(8)),
        ((2**32, 2**32), b""),
        ((2,), bytes(7)),
        ((2,), bytes(9)),
        ((-2,), b""),
        ((-1, -2), bytes(8)),
        ([2], bytes(8)),
        ((2.0,), bytes(8)),
        ((2,), "x" * 8),
        ((2,), [1, 2]),
        ((True, 2), bytes(8)),
    ]:
        with pytest.raises(pickle.UnpicklingError, match="shape"):
            loads(pickle.dumps(array_of(np.dtype("f4"), shape, content)))


def test_an_array_is_filled_once_and_not_written_to():
    whole = pickle.dumps(np.arange(9.0), protocol=4)
    state = whole[whole.index(b"(K\x01K\x09") : -1]
    assert state.endswith(b"b")
    for rest, said in (
        (state.replace(b"\x94", b""), "another number of values"),
        (b"K\x00K\x05s", "other than a dict"),
    ):
        with pytest.raises(pickle.UnpicklingError, match=said):
            loads(whole[:-1] + rest + b".")


def test_admitted_names_are_called_as_their_writers_call_them():
    reconstruct, scalar = np.empty(0).__reduce__()[0], np.float32(0).__reduce__()[0]
    for call, said in [
        (Calls(reconstruct, np.ndarray, (10**11,), b"b"), "begins with a shape"),
        (Calls(reconstruct, collections.OrderedDict, (0,), b"b"), "array of the class"),
        (Calls(np.ndarray, (10**11,)), "it calls ndarray"),
        (Calls(scalar, np.dtype("f4"), b"123"), "bytes of its type"),
        (Calls(np.dtype, "f4,f4"), "array of f4,f4"),
        (Calls(np.dtype, "(9999999,)f4"), "not of numbers"),
        (Calls(np.dtype, [("a", "O")]), "not of numbers"),
        (Calls(tuple, [1]), "a tuple"),
        (Calls(collections.OrderedDict, [((1, 2), 3)]), "key"),
    ]:
        with pytest.raises(pickle.UnpicklingError, match=said):
            loads(pickle.dumps(call, protocol=4))


def test_keys_are_plain():
    """Hashing nested tuples that share their parts takes time exponential in the length of the file."""
    nest = b")" + b"".join(b"q%cj%c\0\0\0%c" % (n, n, 0x86) for n in range(80))
    assert len(nest) < 700
    loads(b"\x80\x02" + nest + b".")
    for opcodes in (
        b"}" + nest + b"Ns.",
        b"}(" + nest + b"Nu.",
        b"(" + nest + b"Nd.",
        b"\x8f(" + nest + b"\x90.",
        b"(" + nest + b"\x91.",
    ):
        with pytest.raises(pickle.UnpicklingError, match="a key that is neither text nor a number"):
            loads(b"\x80\x04" + opcodes)


def announced(length):
    return length.to_bytes(8, "little")


def test_an_announced_length_takes_no_memory():
    for opcode in (pickle.BINBYTES8, pickle.BINUNICODE8, pickle.FRAME):
        with pytest.raises(EOFError):
            loads(b"\x80\x04" + opcode + announced(10**11) + b"x" * 100)
    for opcode in (pickle.BINBYTES, pickle.LONG4, pickle.BINSTRING):
        with pytest.raises(EOFError):
            loads(b"\x80\x04" + opcode + b"\xff\xff\xff\x7f" + b"x" * 100)


def test_a_thing_named_again_and_again_does_not_fill_the_memory():
    text = pickle.dumps("x" * 10**6, protocol=2)[2:-1]
    call = b"c_codecs\nencode\nq\x07h\x00\x85R"
    again = b"h\x07h\x00\x85R"
    loads(b"\x80\x02(" + text + call + again * 20 + b"l.")
    with pytest.raises(ValueError, match=r"bytes would become more than [\d,]+ in memory"):
        loads(b"\x80\x02(" + text + call + again * 20000 + b"l.")


def test_many_arrays_of_the_same_bytes_do_not_fill_the_memory():
    content = bytes(1 << 20)
    data = pickle.dumps([array_of(np.dtype("f4"), (1 << 18,), content) for _ in range(200)], protocol=4)
    assert len(data) < 2 << 20
    with pytest.raises(ValueError, match="would become more"):
        loads(data)


def test_a_name_out_of_a_file_is_fit_for_a_terminal():
    with pytest.raises(ForbiddenError) as refused:
        loads(b"\x80\x04\x8c\x07os\x1b[31m\x8c\x06system\x93.")
    assert "it asks for os\\x1b[31m.system," in str(refused.value) and str(refused.value).isprintable()
    with pytest.raises(ForbiddenError) as refused:
        loads(b"\x80\x04X\x40\x42\x0f\0" + b"a" * 10**6 + b"\x8c\x06system\x93.")
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_trusted_file_may_ask_for_anything(tmp_path, protocol):
    data = pickle.dumps(
        {
            "made": Calls(os.mkdir, str(tmp_path / "made")),
            "array": np.arange(3),
            "odd": np.array(["x"]),
            "options": argparse.Namespace(lr=1),
        },
        protocol=protocol,
    )
    found = load(io.BytesIO(data), trusted=True)
    assert (
        (tmp_path / "made").is_dir()
        and found["array"].tolist() == [0, 1, 2]
        and found["odd"].tolist() == ["x"]
    )


def test_the_byte_order_is_kept():
    assert loads(pickle.dumps(np.arange(3, dtype=">i4"))).tolist() == [0, 1, 2]


def test_a_path_of_attributes_is_not_followed():
    # Protocol 4 lets a name have dots: numpy.dtype would lead to anything that it refers to.
    for name in (b"dtype.__class__", b"ndarray.__subclasshook__"):
        data = b"\x80\x04\x8c\x05numpy\x8c" + bytes([len(name)]) + name + b"\x93."
        with pytest.raises(ForbiddenError, match=f"numpy.{name.decode()}"):
            loads(data)


def test_damaged_files_raise_what_pickle_raises():
    for data in (
        b"",
        b"PK\x03\x04",
        pickle.dumps([np.ones(9)])[:-30],
        b"\x80\x04.",
        b"text",
        b"\x80\x04\x95\x01",  # ends within a length
        b"cnumpy\ndtype\n(V3,,\ntR.",
    ):  # a type that numpy cannot parse
        with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, LookupError)):
            loads(data)


def test_only_what_has_a_state_is_given_one():
    for opcodes, what in ((b"]}b", "list"), (b"N}b", "NoneType"), (b"cnumpy\nndarray\n}b", "type")):
        with pytest.raises(ForbiddenError, match=f"it sets the state of {what}"):
            loads(b"\x80\x04" + opcodes + b".")
