"""oneDNN (version 3) through its C interface: the library of CPU operations that Paddle's CPU build carries.

Paddle's dynamic graph does not use it. Here its primitives work on the memory of Paddle tensors. A function
of this module returns the primitive for some layouts; a call of the primitive with addresses
(`tensor.data_ptr()`) runs it to the end. Shapes are row-major; a transpose or an attention head is a Layout
with other strides, not a copy.

Each thread keeps its `CACHED` most recently used primitives, because oneDNN allows a primitive one thread at
a time, and building one takes up to milliseconds and 100 kB. A training step uses fewer than 100.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import paddle

from util.compute import cpu_runtime

BF16, F32 = 2, 3  # dnnl_data_type_t
BYTES = {BF16: 2, F32: 4}
CACHED = 256  # primitives

# Argument numbers, propagation kinds, algorithms and flags of dnnl_types.h.
SRC, SRC_1, DST, WEIGHTS, BIAS, MEAN, VARIANCE, SCALE, SHIFT = 1, 2, 17, 33, 41, 49, 50, 51, 52
DIFF_SRC, DIFF_DST, DIFF_SCALE, DIFF_SHIFT = 129, 145, 255, 256
POST_OP = 32768  # times the number of the post-op, counted from 1
FORWARD_TRAINING, BACKWARD = 0x40, 0x80
GELU_ERF, LINEAR, BINARY_ADD, BINARY_MUL, SOFTMAX_ACCURATE = 0x31, 0x26, 0x1FFF0, 0x1FFF1, 0x30000
USE_SCALE_AND_SHIFT = 0x6
CPU, IN_ORDER = 1, 1
ANY_LAYOUT, WEIGHTS_MD = 1, 131  # dnnl_format_tag_any, dnnl_query_weights_md

UNIMPLEMENTED = 3  # dnnl_status_t
STATUSES = {1: "out of memory", 2: "invalid arguments", 5: "runtime error"}

Builder = TypeVar("Builder", bound=Callable[..., "Primitive"])
_POINTER, _INT = ctypes.c_void_p, ctypes.c_int


class Layout(NamedTuple):
    """Places of a tensor's elements: sizes and strides (in elements) of the axes, and type, F32 or BF16."""

    dims: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: int

    @property
    def transposed(self) -> Layout:
        """The same memory with the last two axes exchanged."""
        dims, strides = self.dims, self.strides
        return Layout((*dims[:-2], dims[-1], dims[-2]), (*strides[:-2], strides[-1], strides[-2]), self.dtype)


@functools.lru_cache(maxsize=4096)
def dense(dims: Sequence[int], dtype: int = F32) -> Layout:
    """Return the row-major Layout without gaps."""
    strides, step = [], 1
    for size in reversed(dims):
        strides.append(step)
        step *= size
    return Layout(tuple(dims), tuple(reversed(strides)), dtype)


class Unavailable(Exception):
    """Reason why oneDNN cannot be used here, as the end of a sentence."""


class _Version(ctypes.Structure):
    _fields_ = [("major", _INT), ("minor", _INT), ("patch", _INT)]  # later fields are not used


class _Argument(ctypes.Structure):
    _fields_ = [("number", _INT), ("memory", _POINTER)]


@functools.cache
def library() -> Any:
    """Return the loaded library with the signatures of the functions that are used.

    Raises:
        Unavailable: if Paddle carries no oneDNN, another version, or one that cannot be loaded.
    """
    folder = os.path.join(os.path.dirname(paddle.__file__), "libs")
    found = sorted(glob.glob(os.path.join(folder, "libdnnl.so*")))
    if not found:
        raise Unavailable("this Paddle carries no oneDNN")
    try:
        lib = ctypes.CDLL(found[0])
        lib.dnnl_version.restype = ctypes.POINTER(_Version)
        version = lib.dnnl_version().contents
        if version.major != 3:
            raise Unavailable(f"this Paddle carries oneDNN {version.major}.{version.minor}, expected 3.x")
        for name, types in _SIGNATURES.items():
            getattr(lib, name).argtypes = types
        lib.dnnl_get_effective_cpu_isa.restype = _INT
        lib.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
        lib.dnnl_primitive_desc_query_md.restype = _POINTER
        lib.dnnl_set_primitive_cache_capacity(CACHED)  # compiled code, for all threads; the default is 1024
    except (OSError, AttributeError) as error:
        raise Unavailable(f"its oneDNN cannot be loaded ({error})") from error
    lib.version = f"{version.major}.{version.minor}.{version.patch}"  # type: ignore[attr-defined]
    return lib


_SIGNATURES: dict[str, list] = {
    "dnnl_get_effective_cpu_isa": [],
    "dnnl_engine_destroy": [_POINTER],
    "dnnl_stream_destroy": [_POINTER],
    "dnnl_set_primitive_cache_capacity": [_INT],
    "dnnl_engine_create": [_POINTER, _INT, ctypes.c_size_t],
    "dnnl_stream_create": [_POINTER, _POINTER, _INT],
    "dnnl_memory_desc_create_with_strides": [_POINTER, _INT, _POINTER, _INT, _POINTER],
    "dnnl_memory_desc_create_with_tag": [_POINTER, _INT, _POINTER, _INT, _INT],
    "dnnl_memory_desc_get_size": [_POINTER],
    "dnnl_memory_desc_destroy": [_POINTER],
    "dnnl_primitive_desc_query_md": [_POINTER, _INT, _INT],
    "dnnl_memory_create": [_POINTER, _POINTER, _POINTER, _POINTER],
    "dnnl_memory_set_data_handle": [_POINTER, _POINTER],
    "dnnl_memory_destroy": [_POINTER],
    "dnnl_primitive_create": [_POINTER, _POINTER],
    "dnnl_primitive_execute": [_POINTER, _POINTER, _INT, _POINTER],
    "dnnl_primitive_destroy": [_POINTER],
    "dnnl_primitive_desc_destroy": [_POINTER],
    "dnnl_primitive_attr_create": [_POINTER],
    "dnnl_primitive_attr_set_post_ops": [_POINTER, _POINTER],
    "dnnl_primitive_attr_destroy": [_POINTER],
    "dnnl_post_ops_create": [_POINTER],
    "dnnl_post_ops_append_eltwise": [_POINTER, _INT, ctypes.c_float, ctypes.c_float],
    "dnnl_post_ops_append_binary": [_POINTER, _INT, _POINTER],
    "dnnl_post_ops_destroy": [_POINTER],
    "dnnl_matmul_primitive_desc_create": [_POINTER] * 7,
    "dnnl_reorder_primitive_desc_create": [_POINTER] * 6,
    "dnnl_binary_primitive_desc_create": [_POINTER, _POINTER, _INT, _POINTER, _POINTER, _POINTER, _POINTER],
    "dnnl_eltwise_forward_primitive_desc_create": [
        _POINTER,
        _POINTER,
        _INT,
        _INT,
        _POINTER,
        _POINTER,
        ctypes.c_float,
        ctypes.c_float,
        _POINTER,
    ],
    "dnnl_eltwise_backward_primitive_desc_create": [
        _POINTER,
        _POINTER,
        _INT,
        _POINTER,
        _POINTER,
        _POINTER,
        ctypes.c_float,
        ctypes.c_float,
        _POINTER,
        _POINTER,
    ],
    "dnnl_softmax_forward_primitive_desc_create": [
        _POINTER,
        _POINTER,
        _INT,
        _INT,
        _POINTER,
        _POINTER,
        _INT,
        _POINTER,
    ],
    "dnnl_softmax_backward_primitive_desc_create": [
        _POINTER,
        _POINTER,
        _INT,
        _POINTER,
        _POINTER,
        _POINTER,
        _INT,
        _POINTER,
        _POINTER,
    ],
    "dnnl_layer_normalization_forward_primitive_desc_create": [
        _POINTER,
        _POINTER,
        _INT,
        _POINTER,
        _POINTER,
        _POINTER,
        ctypes.c_float,
        ctypes.c_uint,
        _POINTER,
    ],
    "dnnl_layer_normalization_backward_primitive_desc_create": [
        _POINTER,
        _POINTER,
        _INT,
        _POINTER,
        _POINTER,
        _POINTER,
        _POINTER,
        ctypes.c_float,
        ctypes.c_uint,
        _POINTER,
        _POINTER,
    ],
}


def instruction_set() -> str:
    """Return the instruction set that oneDNN uses, within the limits of its environment variables: "AVX2".

    "(bfloat16)" in the name, as in "AVX-512 + AMX (bfloat16)", means products in bfloat16. Without oneDNN it
    is the processor's own instruction set.
    """
    try:
        return cpu_runtime.name_of(library().dnnl_get_effective_cpu_isa())
    except Unavailable:
        return cpu_runtime.name_of(cpu_runtime.instruction_sets(cpu_runtime.features()))


def bfloat16_missing() -> str:
    """Return the reason why bfloat16 is not faster than float32 on this CPU, as a clause; "" if it is."""
    if not cpu_runtime.instruction_sets(cpu_runtime.features()) & cpu_runtime.BFLOAT16:
        return "this CPU has neither avx512_bf16 nor amx_bf16, and would be slower than in float32"
    try:
        limited = not library().dnnl_get_effective_cpu_isa() & cpu_runtime.BFLOAT16
    except Unavailable:
        return ""
    said = " ".join(f"{name}={os.environ[name]}" for name in cpu_runtime.ONEDNN_LIMITS if name in os.environ)
    return f"{said or 'oneDNN'} keeps oneDNN from this CPU's products in bfloat16" if limited else ""


def _check(status: int, operation: str = "an operation") -> None:
    if status == UNIMPLEMENTED:
        raise Unavailable(f"its oneDNN {library().version} has no {operation} for {instruction_set()}")
    if status:
        raise RuntimeError(f"oneDNN failed in {operation}: {STATUSES.get(status, f'status {status}')}")


class _Object:
    """Owner of an object of the library, made by dnnl_<kind>_create; ctypes accepts it as a pointer."""

    def __init__(self, kind: str, *args: Any, create: str | None = None):
        lib = library()
        self._as_parameter_ = _POINTER()
        create = create or f"{kind}_create"
        _check(
            getattr(lib, f"dnnl_{create}")(ctypes.byref(self._as_parameter_), *args),
            create.removesuffix("_create").removesuffix("_primitive_desc").replace("_", " "),
        )
        self.destroy = getattr(lib, f"dnnl_{kind}_destroy")

    def __del__(self):
        if hasattr(self, "destroy"):
            self.destroy(self._as_parameter_)


class _Thread(threading.local):
    """Objects of one thread: an engine, a stream, and the primitives it has used."""

    def __init__(self):
        self.engine = _Object("engine", CPU, 0)
        self.stream = _Object("stream", self.engine, IN_ORDER)
        self.primitives: OrderedDict[tuple, Primitive] = OrderedDict()


_making = threading.Lock()
_own: _Thread | None = None


def _thread() -> _Thread:
    global _own
    if _own is None:  # made at the first use, because that loads the library
        with _making:
            _own = _own or _Thread()
    return _own


class Primitive:
    """Operation for fixed layouts. Call it with one address for each of its arguments, in their order.

    Args:
        description: primitive descriptor, as `_describe` returns it.
        arguments: {argument number: Layout}.
    """

    def __init__(self, description: _Object, arguments: dict[int, Layout | Packed]):
        engine = _thread().engine
        self.primitive = _Object("primitive", description)
        self.memories = [
            _Object("memory", _memory_desc(layout), engine, None) for layout in arguments.values()
        ]
        self.arguments = (_Argument * len(arguments))(
            *[
                _Argument(number, memory._as_parameter_)
                for number, memory in zip(arguments, self.memories, strict=True)
            ]
        )
        lib = library()
        self.execute, self.set_address = lib.dnnl_primitive_execute, lib.dnnl_memory_set_data_handle

    def __call__(self, *addresses: int) -> None:
        """Run the operation to its end."""
        for memory, address in zip(self.memories, addresses, strict=True):
            self.set_address(memory, address)
        _check(self.execute(self.primitive, _thread().stream, len(addresses), self.arguments))


class Packed:
    """Layout that `matmul` prefers for its second argument. `reorder` writes it, and only `matmul` reads it.

    Args:
        a: as for `matmul`, like c and bias.
        b: the dense Layout of the second argument.
    """

    def __init__(self, a: Layout, b: Layout, c: Layout, bias: Layout):
        numbers = ctypes.c_int64 * len(b.dims)
        anyhow = _Object(
            "memory_desc",
            len(b.dims),
            numbers(*b.dims),
            b.dtype,
            ANY_LAYOUT,
            create="memory_desc_create_with_tag",
        )
        self.owner = _describe("matmul", a, anyhow, bias, c, None)
        self._as_parameter_ = _POINTER(library().dnnl_primitive_desc_query_md(self.owner, WEIGHTS_MD, 0))
        self.bytes = library().dnnl_memory_desc_get_size(self)


def _memory_desc(layout: Layout | Packed) -> _Object | Packed:
    if isinstance(layout, Packed):
        return layout
    numbers = ctypes.c_int64 * len(layout.dims)
    return _Object(
        "memory_desc",
        len(layout.dims),
        numbers(*layout.dims),
        layout.dtype,
        numbers(*layout.strides),
        create="memory_desc_create_with_strides",
    )


def _describe(operation: str, *args: Any) -> _Object:
    """Call dnnl_<operation>_primitive_desc_create(engine, *args); Layouts become memory descriptors."""
    values = [_memory_desc(arg) if isinstance(arg, Layout) else arg for arg in args]
    return _Object("primitive_desc", _thread().engine, *values, create=f"{operation}_primitive_desc_create")


def _kept(build: Builder) -> Builder:
    """Decorate a function that builds a Primitive: each thread keeps its most recently used ones."""

    @functools.wraps(build)
    def get(*args: Any) -> Primitive:
        kept, key = _thread().primitives, (build, args)
        primitive = kept.get(key)
        if primitive is None:
            primitive = kept[key] = build(*args)
            if len(kept) > CACHED:
                kept.popitem(last=False)
        else:
            kept.move_to_end(key)
        return primitive

    return cast(Builder, get)


@_kept
def matmul(
    a: Layout,
    b: Layout | Packed,
    c: Layout,
    bias: Layout | None = None,
    scale: float | None = None,
    add: Layout | None = None,
) -> Primitive:
    """Compute c = (a @ b + bias) * scale + add, summed in float32.

    Addresses: a, b, c, then bias and add if given.

    Args:
        a: [..., M, K].
        b: [..., K, N].
        c: [..., M, N].
        bias: broadcasts to c.
        scale: a number; None is 1.
        add: like c.
    """
    arguments: dict[int, Layout | Packed] = {SRC: a, WEIGHTS: b, DST: c}
    attributes = None
    if bias is not None:
        arguments[BIAS] = bias
    if scale is not None or add is not None:
        attributes, steps, lib = _Object("primitive_attr"), _Object("post_ops"), library()
        if scale is not None:
            _check(lib.dnnl_post_ops_append_eltwise(steps, LINEAR, scale, 0.0))
        if add is not None:
            _check(lib.dnnl_post_ops_append_binary(steps, BINARY_ADD, _memory_desc(add)))
            arguments[POST_OP * (1 if scale is None else 2) + SRC_1] = add
        _check(lib.dnnl_primitive_attr_set_post_ops(attributes, steps))
    return Primitive(_describe("matmul", a, b, bias, c, attributes), arguments)


@_kept
def reorder(source: Layout, target: Layout | Packed) -> Primitive:
    """Copy between two Layouts of one shape, rounding to nearest. Addresses: source, target."""
    engine = _thread().engine
    description = _Object(
        "primitive_desc",
        _memory_desc(source),
        engine,
        _memory_desc(target),
        engine,
        None,
        create="reorder_primitive_desc_create",
    )
    return Primitive(description, {SRC: source, DST: target})


@_kept
def add(a: Layout, b: Layout, c: Layout) -> Primitive:
    """Compute c = a + b, where b broadcasts to a. Addresses: a, b, c."""
    return Primitive(_describe("binary", BINARY_ADD, a, b, c, None), {SRC: a, SRC_1: b, DST: c})


@_kept
def multiply(a: Layout, b: Layout, c: Layout, add: Layout | None = None) -> Primitive:
    """Compute c = a * b + add, where b broadcasts to a and add is like c.

    Addresses: a, b, c, then add if given.
    Fast for float32 and up to two axes only; other layouts take 100 times as long.
    """
    arguments: dict[int, Layout | Packed] = {SRC: a, SRC_1: b, DST: c}
    attributes = None
    if add is not None:
        arguments[POST_OP + SRC_1] = add
        attributes, steps = _Object("primitive_attr"), _Object("post_ops")
        _check(library().dnnl_post_ops_append_binary(steps, BINARY_ADD, _memory_desc(add)))
        _check(library().dnnl_primitive_attr_set_post_ops(attributes, steps))
    return Primitive(_describe("binary", BINARY_MUL, a, b, c, attributes), arguments)


@_kept
def gelu(source: Layout, target: Layout) -> Primitive:
    """Compute the exact GELU, by the error function. Addresses: source, target."""
    return Primitive(
        _describe("eltwise_forward", FORWARD_TRAINING, GELU_ERF, source, target, 0.0, 0.0, None),
        {SRC: source, DST: target},
    )


@_kept
def gelu_backward(source: Layout, gradient: Layout) -> Primitive:
    """Compute the gradient of `gelu`. Addresses: its input, gradient of its output, gradient of its input.

    The last two may be the same memory.
    """
    forward = _describe("eltwise_forward", FORWARD_TRAINING, GELU_ERF, source, source, 0.0, 0.0, None)
    backward = _describe("eltwise_backward", GELU_ERF, gradient, gradient, source, 0.0, 0.0, forward, None)
    return Primitive(backward, {SRC: source, DIFF_DST: gradient, DIFF_SRC: gradient})


@_kept
def softmax(source: Layout, target: Layout) -> Primitive:
    """Compute the softmax along the last axis. Addresses: source, target."""
    axis = len(source.dims) - 1
    forward = _describe("softmax_forward", FORWARD_TRAINING, SOFTMAX_ACCURATE, source, target, axis, None)
    return Primitive(forward, {SRC: source, DST: target})


@_kept
def softmax_backward(layout: Layout) -> Primitive:
    """Compute the gradient of `softmax`. Addresses: its output, gradients of output and input."""
    axis = len(layout.dims) - 1
    forward = _describe("softmax_forward", FORWARD_TRAINING, SOFTMAX_ACCURATE, layout, layout, axis, None)
    backward = _describe("softmax_backward", SOFTMAX_ACCURATE, layout, layout, layout, axis, forward, None)
    return Primitive(backward, {DST: layout, DIFF_DST: layout, DIFF_SRC: layout})


@_kept
def layer_norm(source: Layout, target: Layout, epsilon: float) -> Primitive:
    """Normalise over the last axis. Addresses: source, target, mean, variance, scale, shift.

    The last four are float32. Mean and variance are results, of the shape of source without its last axis.
    """
    statistics, parameter = dense(source.dims[:-1]), dense(source.dims[-1:])
    forward = _describe(
        "layer_normalization_forward",
        FORWARD_TRAINING,
        source,
        target,
        statistics,
        epsilon,
        USE_SCALE_AND_SHIFT,
        None,
    )
    return Primitive(
        forward,
        {
            SRC: source,
            DST: target,
            MEAN: statistics,
            VARIANCE: statistics,
            SCALE: parameter,
            SHIFT: parameter,
        },
    )


@_kept
def layer_norm_backward(source: Layout, gradient: Layout, result: Layout, epsilon: float) -> Primitive:
    """Compute the gradients of `layer_norm`.

    Addresses: source, mean, variance, gradient of the output, scale, shift; then the results, the gradients
    of source, scale and shift.
    """
    statistics, parameter = dense(source.dims[:-1]), dense(source.dims[-1:])
    forward = _describe(
        "layer_normalization_forward",
        FORWARD_TRAINING,
        source,
        source,
        statistics,
        epsilon,
        USE_SCALE_AND_SHIFT,
        None,
    )
    backward = _describe(
        "layer_normalization_backward",
        BACKWARD,
        result,
        gradient,
        source,
        statistics,
        epsilon,
        USE_SCALE_AND_SHIFT,
        forward,
        None,
    )
    return Primitive(
        backward,
        {
            SRC: source,
            MEAN: statistics,
            VARIANCE: statistics,
            DIFF_DST: gradient,
            SCALE: parameter,
            SHIFT: parameter,
            DIFF_SRC: result,
            DIFF_SCALE: parameter,
            DIFF_SHIFT: parameter,
        },
    )
