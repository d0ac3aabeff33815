"""What may come out of a pickle, and that nothing else does."""
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

from util.safe_pickle import ForbiddenError, load

# {"a": float32 [0, 1, 2], "s": numpy.float64(2.5)}, pickled by the versions named.
ARRAYS = {
    "numpy 1.26.4 protocol 4": (
        "gASV4AAAAAAAAAB9lCiMAWGUjBVudW1weS5jb3JlLm11bHRpYXJyYXmUjAxfcmVjb25zdHJ1Y3SUk5SMBW51bXB5lIwHbmRhcnJheZST"
        "lEsAhZRDAWKUh5RSlChLAUsDhZRoBYwFZHR5cGWUk5SMAmY0lImIh5RSlChLA4wBPJROTk5K/////0r/////SwB0lGKJQwwAAAAAAACA"
        "PwAAAECUdJRijAFzlGgCjAZzY2FsYXKUk5RoDowCZjiUiYiHlFKUKEsDaBJOTk5K/////0r/////SwB0lGJDCAAAAAAAAARAlIaUUpR1"
        "Lg=="),
    "numpy 2.4.6 protocol 4": (
        "gASV4QAAAAAAAAB9lCiMAWGUjBZudW1weS5fY29yZS5tdWx0aWFycmF5lIwMX3JlY29uc3RydWN0lJOUjAVudW1weZSMB25kYXJyYXmU"
        "k5RLAIWUQwFilIeUUpQoSwFLA4WUaAWMBWR0eXBllJOUjAJmNJSJiIeUUpQoSwOMATyUTk5OSv////9K/////0sAdJRiiUMMAAAAAAAA"
        "gD8AAABAlHSUYowBc5RoAowGc2NhbGFylJOUaA6MAmY4lImIh5RSlChLA2gSTk5OSv////9K/////0sAdJRiQwgAAAAAAAAEQJSGlFKU"
        "dS4="),
    "numpy 1.26.4 protocol 2": (
        "gAJ9cQAoWAEAAABhcQFjbnVtcHkuY29yZS5tdWx0aWFycmF5Cl9yZWNvbnN0cnVjdApxAmNudW1weQpuZGFycmF5CnEDSwCFcQRjX2Nv"
        "ZGVjcwplbmNvZGUKcQVYAQAAAGJxBlgGAAAAbGF0aW4xcQeGcQhScQmHcQpScQsoSwFLA4VxDGNudW1weQpkdHlwZQpxDVgCAAAAZjRx"
        "DomIh3EPUnEQKEsDWAEAAAA8cRFOTk5K/////0r/////SwB0cRJiiWgFWA0AAAAAAAAAAADCgD8AAABAcRNoB4ZxFFJxFXRxFmJYAQAA"
        "AHNxF2NudW1weS5jb3JlLm11bHRpYXJyYXkKc2NhbGFyCnEYaA1YAgAAAGY4cRmJiIdxGlJxGyhLA2gRTk5OSv////9K/////0sAdHEc"
        "YmgFWAgAAAAAAAAAAAAEQHEdaAeGcR5ScR+GcSBScSF1Lg=="),
    "numpy 2.4.6 protocol 2": (
        "gAJ9cQAoWAEAAABhcQFjbnVtcHkuX2NvcmUubXVsdGlhcnJheQpfcmVjb25zdHJ1Y3QKcQJjbnVtcHkKbmRhcnJheQpxA0sAhXEEY19j"
        "b2RlY3MKZW5jb2RlCnEFWAEAAABicQZYBgAAAGxhdGluMXEHhnEIUnEJh3EKUnELKEsBSwOFcQxjbnVtcHkKZHR5cGUKcQ1YAgAAAGY0"
        "cQ6JiIdxD1JxEChLA1gBAAAAPHERTk5OSv////9K/////0sAdHESYoloBVgNAAAAAAAAAAAAwoA/AAAAQHETaAeGcRRScRV0cRZiWAEA"
        "AABzcRdjbnVtcHkuX2NvcmUubXVsdGlhcnJheQpzY2FsYXIKcRhoDVgCAAAAZjhxGYmIh3EaUnEbKEsDaBFOTk5K/////0r/////SwB0"
        "cRxiaAVYCAAAAAAAAAAAAARAcR1oB4ZxHlJxH4ZxIFJxIXUu"),
}

# paddle.save({"model": layer.state_dict()}, file) of a Linear(1, 2) with weights 0.5 and biases 2.
SAVED = {
    "paddle 2.6.2": (
        "gASVNwEAAAAAAAB9lIwFbW9kZWyUjAtjb2xsZWN0aW9uc5SMC09yZGVyZWREaWN0lJOUKVKUKIwGd2VpZ2h0lIwIYnVpbHRpbnOUjAV0"
        "dXBsZZSTlIwMbGluZWFyXzAud18wlIwVbnVtcHkuY29yZS5tdWx0aWFycmF5lIwMX3JlY29uc3RydWN0lJOUjAVudW1weZSMB25kYXJy"
        "YXmUk5RLAIWUQwFilIeUUpQoSwFLAUsChpRoDowFZHR5cGWUk5SMAmY0lImIh5RSlChLA4wBPJROTk5K/////0r/////SwB0lGKJQwgA"
        "AAA/AAAAP5R0lGKGlIWUUpSMBGJpYXOUaAmMDGxpbmVhcl8wLmJfMJRoDWgQSwCFlGgSh5RSlChLAUsChZRoGolDCAAAAEAAAABAlHSU"
        "YoaUhZRSlHVzLg=="),
    "paddle 3.3.1": (
        "gASVOAEAAAAAAAB9lIwFbW9kZWyUjAtjb2xsZWN0aW9uc5SMC09yZGVyZWREaWN0lJOUKVKUKIwGd2VpZ2h0lIwIYnVpbHRpbnOUjAV0"
        "dXBsZZSTlIwMbGluZWFyXzAud18wlIwWbnVtcHkuX2NvcmUubXVsdGlhcnJheZSMDF9yZWNvbnN0cnVjdJSTlIwFbnVtcHmUjAduZGFy"
        "cmF5lJOUSwCFlEMBYpSHlFKUKEsBSwFLAoaUaA6MBWR0eXBllJOUjAJmNJSJiIeUUpQoSwOMATyUTk5OSv////9K/////0sAdJRiiUMI"
        "AAAAPwAAAD+UdJRihpSFlFKUjARiaWFzlGgJjAxsaW5lYXJfMC5iXzCUaA1oEEsAhZRoEoeUUpQoSwFLAoWUaBqJQwgAAABAAAAAQJR0"
        "lGKGlIWUUpR1cy4="),
}


def loads(data):
    return load(io.BytesIO(data))


@pytest.mark.parametrize("writer", ARRAYS)
def test_arrays_of_both_numpy_generations_are_read_by_either(writer):
    found = loads(base64.b64decode(ARRAYS[writer]))
    assert found.keys() == {"a", "s"}
    assert type(found["a"]) is np.ndarray and found["a"].dtype == np.float32 and found["a"].tolist() == [0, 1, 2]
    assert type(found["s"]) is np.float64 and found["s"] == 2.5


@pytest.mark.parametrize("writer", SAVED)
def test_what_paddle_saves_is_read(writer):
    model = loads(base64.b64decode(SAVED[writer]))["model"]
    assert {name: (generated, array.tolist()) for name, (generated, array) in model.items()} == {
        "weight": ("linear_0.w_0", [[0.5, 0.5]]), "bias": ("linear_0.b_0", [2.0, 2.0])}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_containers_and_arrays_of_this_python(protocol):
    state = {"epoch": 3, "model": collections.OrderedDict(w=np.eye(2, dtype="int64")), "names": ["a", None, True, 1.5],
             "pair": (1, b"x")}
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
        "args": {"lr": 0.1, "model": "mae_vit_base_patch16", "nested": {"x": [1]}}}


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function, arguments, name", [
    (os.system, ("touch victim",), f"{os.system.__module__}.system"),
    (eval, ("open('victim', 'w')",), "builtins.eval"),
    (exec, ("open('victim', 'w')",), "builtins.exec"),
    (getattr, ((), "count"), "builtins.getattr"),
    (open, ("victim", "w"), "io.open"),
    (subprocess.Popen, (["touch", "victim"],), "subprocess.Popen"),
    (np.save, ("victim", 0), "numpy.save"),
    (np.frombuffer, (b"1234",), "numpy.frombuffer"),
])
def test_calls_are_refused_by_name_and_not_made(tmp_path, monkeypatch, function, arguments, name):
    monkeypatch.chdir(tmp_path)
    for protocol in (2, 4):  # protocol 2 has other names for some modules
        data = pickle.dumps({"model": np.ones(2), "extra": Calls(function, *arguments)}, protocol=protocol)
        with pytest.raises(ForbiddenError, match=r"it asks for \S+, which is neither an array") as refused:
            loads(data)
    assert f"asks for {name}," in str(refused.value)
    assert os.listdir() == []


# What numpy calls the state of a dtype: version, byte order, subarray, names, fields, size, alignment, flags.
POINTERS = 3, "|", None, ("o",), {"o": (Calls(np.dtype, "O"), 0)}, 8, 1


@pytest.mark.parametrize("code, state", [
    ("V8", (*POINTERS, 0)), ("V8", (*POINTERS, 63)), ("f8", (*POINTERS, 0)), ("f8", (*POINTERS, 63)),
    ("O", (3, "|", None, None, None, -1, -1, 0)), ("f8", (3, "<", None, None, None, -1, -1, 63))])
def test_bytes_do_not_become_pointers(code, state):
    """An array of objects made of bytes of the file would let them point anywhere."""
    dtype = Calls(np.dtype, code, False, True)
    dtype.call += (state,)
    data = pickle.dumps(Calls(np.ndarray, (1,), dtype, b"\1" * 8))
    try:
        found = loads(data)
    except ForbiddenError as error:
        assert "which are not numbers" in str(error)
    else:
        assert found.dtype == np.float64 and found.dtype.flags == 0 and found.dtype.fields is None


def test_the_byte_order_is_kept():
    assert loads(pickle.dumps(np.arange(3, dtype=">i4"))).tolist() == [0, 1, 2]


def test_a_path_of_attributes_is_not_followed():
    # Protocol 4 lets a name have dots: numpy.dtype would lead to anything that it refers to.
    for name in (b"dtype.__class__", b"ndarray.__subclasshook__"):
        data = b"\x80\x04\x8c\x05numpy\x8c" + bytes([len(name)]) + name + b"\x93."
        with pytest.raises(ForbiddenError, match=f"numpy.{name.decode()}"):
            loads(data)


@pytest.mark.parametrize("data", [
    b"", b"PK\x03\x04", pickle.dumps([np.ones(9)])[:-30], b"\x80\x04.", b"text",
    b"\x80\x04\x95\x01",  # ends within a length
    b"cnumpy\ndtype\n(V3,,\ntR.",  # a type that numpy fails to parse
])
def test_damaged_files_raise_what_pickle_raises(data):
    with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, LookupError)):
        loads(data)
