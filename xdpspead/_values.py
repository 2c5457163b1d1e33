"""Between the bytes of an item and its value: decoders made once per descriptor, and an encoder.

How it works. An item of which many values will come asks `make_decoders` once for a pair of
functions, in which everything that does not depend on the bytes has been worked out: the dtype,
the number of bytes, the mask. What is left per value is a length check and one NumPy call.

Values of native types are views on the payload, so no byte is copied unless the byte order has
to change. All other formats are unpacked bit by bit, most significant first, into object arrays
of Python integers and booleans; NumPy does this a field at a time, in blocks of bounded size.
Such an array takes up to 64 bytes of pointers for a byte of payload (1-bit fields), besides the
integers over 256 themselves.

A heap comes from the network: a shape that the bytes cannot fill is a ValueError, raised before
anything of that size is allocated.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NoReturn, TypeAlias

import numpy as np

from ._descriptor import Descriptor

#: ``decode(payload, offset, length)``; the caller vouches for offset + length.
AddressedDecoder: TypeAlias = Callable[[Any, int, int], Any]
#: ``decode(value, address_bytes)``
ImmediateDecoder: TypeAlias = Callable[[int, int], Any]
Decoders: TypeAlias = tuple[AddressedDecoder, ImmediateDecoder]

# Records that are unpacked at once: bounds the temporary memory to a few MiB.
_BLOCK: Final = 1 << 16
# Bits that are packed at once, each of which takes a byte or two meanwhile.
_PACKED_BITS: Final = 1 << 20

_TEXT: Final = (str, bytes)
_INTEGERS: Final = (int, np.integer, np.bool_)
# Kinds of dtypes that are formats of buffers, surely.
_PLAIN_KINDS: Final = frozenset("biufcSU")


def _too_few(descriptor: Descriptor, actual: int, wanted: int) -> NoReturn:
    raise ValueError(f"Item {descriptor.name} has too few elements for shape ({actual} < {wanted})")


def make_decoders(descriptor: Descriptor, new_order: str) -> Decoders:
    """Return the functions that turn the bytes of an item into a value.

    Parameters
    ----------
    descriptor : Descriptor
        What the values look like.
    new_order : str
        Byte order of arrays: ``"="`` native, ``"|"`` as sent, or any other that
        `numpy.dtype.newbyteorder` takes. Objects have none, so bit-packed formats ignore it.

    Returns
    -------
    addressed : callable
        ``addressed(payload, offset, length)``: value at `offset` of a buffer.
    immediate : callable
        ``immediate(value, address_bytes)``: value out of an item pointer.
        Both raise ValueError if there are too few bytes.

    Raises
    ------
    ValueError
        If `new_order` is no byte order, or no array can have this dtype and shape.
    TypeError
        If `new_order` is not a str.
    """
    dtype = descriptor._internal_dtype
    if dtype.hasobject:
        if descriptor.shape == () and len(descriptor.format or ()) == 1:
            return _integer_decoders(descriptor)
        return _packed_decoders(descriptor)
    byte_order: Any = new_order
    target = dtype.newbyteorder(byte_order)
    if dtype.subdtype is not None:
        raise ValueError(f"Item {descriptor.name}: values of dtype {dtype} are not supported")
    if len(descriptor.shape) == 1 and descriptor.format == [("c", 8)]:
        return _text_decoders(descriptor)
    if descriptor.is_variable_size():
        return _variable_decoders(descriptor, target)
    return _fixed_decoders(descriptor, target)


def _dimensions(descriptor: Descriptor, max_elements: int) -> tuple[Sequence[int], int]:
    """Return shape and number of elements of a value, once it is sure that they arrived."""
    shape = descriptor.dynamic_shape(max_elements)
    elements = math.prod(shape)
    if elements > max_elements:
        _too_few(descriptor, max_elements, elements)
    return shape, elements


def _check_array(descriptor: Descriptor) -> None:
    """Raise ValueError if no array can have a fixed shape without elements.

    Other shapes need no such check: their elements have to arrive first.
    """
    if 0 in descriptor.shape and None not in descriptor.shape:
        try:
            np.ndarray(descriptor.dynamic_shape(0), np.uint8, b"")
        except (ValueError, OverflowError, MemoryError) as error:
            raise ValueError(f"Item {descriptor.name}: {error}") from error


def _immediate_bytes(value: int, address_bytes: int) -> bytearray:
    """Return an immediate value as bytes that an array may view and write to."""
    return bytearray(value.to_bytes(address_bytes, "big"))


def _fixed_decoders(descriptor: Descriptor, target: np.dtype[Any]) -> Decoders:
    """Return the decoders of a native dtype and a shape without variable dimension."""
    _check_array(descriptor)
    dtype = descriptor._internal_dtype
    itemsize = dtype.itemsize
    shape, order = descriptor.dynamic_shape(0), descriptor.order
    elements = math.prod(shape)
    n_bytes = elements * itemsize
    swap = target != dtype
    order_kw: Any = order
    ndarray = np.ndarray

    def any_array(payload: Any, offset: int, length: int) -> Any:
        if length < n_bytes:
            _too_few(descriptor, length // itemsize, elements)
        value = ndarray(shape, dtype, payload, offset, None, order_kw)
        return value.astype(target) if swap else value

    def plain_array(payload: Any, offset: int, length: int) -> Any:
        if length < n_bytes:
            _too_few(descriptor, length // itemsize, elements)
        return ndarray(shape, dtype, payload, offset)

    # Arguments that say nothing cost time all the same, and this is done for every heap.
    array = any_array if swap or order != "C" else plain_array

    def scalar(payload: Any, offset: int, length: int) -> Any:
        try:
            return array(payload, offset, length)[()]
        # NumPy's answer to a "U" string with a code point beyond Unicode.
        except SystemError as error:
            raise ValueError(f"Item {descriptor.name}: {error}") from error

    addressed = scalar if shape == () else array

    def immediate(value: int, address_bytes: int) -> Any:
        if n_bytes > address_bytes:
            _too_few(descriptor, address_bytes // itemsize, elements)
        # An array without elements is sent as an immediate, whose bytes then mean nothing.
        data = _immediate_bytes(value, address_bytes)
        return addressed(data, address_bytes - n_bytes, n_bytes)

    if shape == () and dtype.kind in "ui" and dtype.names is None:
        return addressed, _immediate_integer(descriptor, dtype)
    return addressed, immediate


def _immediate_integer(descriptor: Descriptor, dtype: np.dtype[Any]) -> ImmediateDecoder:
    """Return the decoder of a native integer in an item pointer, the commonest item of all."""
    n_bytes = dtype.itemsize
    mask = (1 << 8 * n_bytes) - 1
    sign = 1 << (8 * n_bytes - 1) if dtype.kind == "i" else 0
    swap = n_bytes > 1 and dtype.newbyteorder(">") != dtype
    make = dtype.type

    def immediate(value: int, address_bytes: int) -> Any:
        if n_bytes > address_bytes:
            _too_few(descriptor, 0, 1)
        value &= mask
        if swap:
            value = int.from_bytes(value.to_bytes(n_bytes, "big"), "little")
        return make((value ^ sign) - sign)

    return immediate


def _variable_decoders(descriptor: Descriptor, target: np.dtype[Any]) -> Decoders:
    """Return the decoders of a native dtype and a shape with a variable dimension."""
    dtype = descriptor._internal_dtype
    itemsize = dtype.itemsize
    swap = target != dtype

    def build(payload: Any, offset: int, shape: Sequence[int]) -> Any:
        try:
            value: Any = np.ndarray(shape, dtype, payload, offset)
        except (ValueError, OverflowError, MemoryError) as error:
            raise ValueError(f"Item {descriptor.name}: {error}") from error
        return value.astype(target) if swap else value

    def addressed(payload: Any, offset: int, length: int) -> Any:
        shape, _ = _dimensions(descriptor, length // itemsize)
        return build(payload, offset, shape)

    def immediate(value: int, address_bytes: int) -> Any:
        shape, elements = _dimensions(descriptor, address_bytes // itemsize)
        n_bytes = elements * itemsize
        if n_bytes == 0:
            raise ValueError(
                f"cannot reshape array of size {address_bytes // itemsize} into shape {shape}"
            )
        data = _immediate_bytes(value, address_bytes)
        return build(data, address_bytes - n_bytes, shape)

    return addressed, immediate


def _text_decoders(descriptor: Descriptor) -> Decoders:
    """Return the decoders of one-dimensional characters, which become a str without NULs."""

    def text(data: bytes) -> str:
        return data.replace(b"\0", b"").decode("ascii")

    def addressed(payload: Any, offset: int, length: int) -> str:
        _, elements = _dimensions(descriptor, length)
        return text(bytes(memoryview(payload)[offset : offset + elements]))

    def immediate(value: int, address_bytes: int) -> str:
        _, elements = _dimensions(descriptor, address_bytes)
        return text(value.to_bytes(address_bytes, "big")[address_bytes - elements :])

    return addressed, immediate


def _integer_decoders(descriptor: Descriptor) -> Decoders:
    """Return the decoders of one integer or boolean of a width that NumPy does not have."""
    code, bits = (descriptor.format or [])[0]
    n_bytes = (bits + 7) // 8
    mask = (1 << 8 * n_bytes) - 1
    shift = 8 * n_bytes - bits
    sign = 1 << (bits - 1) if code == "i" else 0
    boolean = code == "b"

    def finish(value: int) -> int:
        value >>= shift
        if boolean:
            return value != 0
        return (value ^ sign) - sign

    def addressed(payload: Any, offset: int, length: int) -> int:
        if length < n_bytes:
            _too_few(descriptor, 8 * length // bits, 1)
        return finish(int.from_bytes(memoryview(payload)[offset : offset + n_bytes], "big"))

    def immediate(value: int, address_bytes: int) -> int:
        if address_bytes < n_bytes:
            _too_few(descriptor, 8 * address_bytes // bits, 1)
        return finish(value & mask)

    return addressed, immediate


def _packed_decoders(descriptor: Descriptor) -> Decoders:
    """Return the decoders of any other bit-packed format."""
    _check_array(descriptor)
    fields = list(descriptor.format or ())
    bits = descriptor.itemsize_bits
    dtype = descriptor._internal_dtype

    def build(data: Any, shape: Sequence[int], elements: int) -> Any:
        value: Any = _unpack(data, elements, fields, dtype)
        if not shape:
            return value[0]
        # An array that spead2 makes of nested lists ends at its first empty dimension.
        if 0 in shape:
            shape = shape[: shape.index(0) + 1]
        try:
            return value.reshape(shape)
        except (ValueError, OverflowError, MemoryError) as error:
            raise ValueError(f"Item {descriptor.name}: {error}") from error

    def addressed(payload: Any, offset: int, length: int) -> Any:
        shape, elements = _dimensions(descriptor, 8 * length // bits)
        n_bytes = (elements * bits + 7) // 8
        return build(memoryview(payload)[offset : offset + n_bytes], shape, elements)

    def immediate(value: int, address_bytes: int) -> Any:
        shape, elements = _dimensions(descriptor, 8 * address_bytes // bits)
        n_bytes = (elements * bits + 7) // 8
        data = value.to_bytes(address_bytes, "big")[address_bytes - n_bytes :]
        return build(data, shape, elements)

    return addressed, immediate


def _unpack(
    data: Any, n_records: int, fields: Sequence[tuple[str, int]], dtype: np.dtype[Any]
) -> np.ndarray[Any, Any]:
    """Return `n_records` bit-packed records as an array, shape ``(n_records,)``.

    Parameters
    ----------
    data : bytes-like
        The records, back to back from the most significant bit of the first byte.
    n_records : int
        Number of records.
    fields : sequence of tuple of (str, int)
        Type code and width in bits of each field.
    dtype : numpy dtype
        Type of the result; structured with fields ``f0``, ``f1``, … if there are several.
    """
    result = np.empty(n_records, dtype)
    record_bits = sum(bits for _, bits in fields)
    # A field is read out of nine bytes, of which the last ones may lie behind the data.
    padded = np.zeros(len(data) + 9, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 9)
    start = 0
    for i, (code, bits) in enumerate(fields):
        column = result if dtype.names is None else result[f"f{i}"]
        for first in range(0, n_records, _BLOCK):
            last = min(first + _BLOCK, n_records)
            starts = np.arange(first, last, dtype=np.int64) * record_bits + start
            if bits <= 64:
                column[first:last] = _narrow_field(windows, starts, code, bits, column.dtype)
            else:
                column[first:last] = list(_wide_field(data, starts.tolist(), code, bits))
        start += bits
    return result


def _narrow_field(
    windows: np.ndarray[Any, Any],
    starts: np.ndarray[Any, Any],
    code: str,
    bits: int,
    dtype: np.dtype[Any],
) -> np.ndarray[Any, Any]:
    """Return a field of at most 64 bits of many records, given where each starts, in bits."""
    window = windows[starts >> 3]
    shift = (starts & 7).astype(np.uint64)
    top = np.ascontiguousarray(window[:, :8]).view(">u8")[:, 0].astype(np.uint64) << shift
    top |= window[:, 8].astype(np.uint64) >> (np.uint64(8) - shift)
    if code == "i":
        signed: np.ndarray[Any, Any] = top.view(np.int64) >> np.int64(64 - bits)
        return signed.astype(dtype)
    value: np.ndarray[Any, Any] = top >> np.uint64(64 - bits)
    if code == "b":
        value = value != 0
    if code in "ub":
        return value.astype(dtype)
    # What is left, floats and characters, is a pattern of bits.
    pattern: np.ndarray[Any, Any] = value.astype(f">u{dtype.itemsize}").view(dtype)
    return pattern


def _wide_field(data: Any, starts: Iterable[int], code: str, bits: int) -> Iterable[int]:
    """Yield an integer or boolean of more than 64 bits of many records."""
    mask = (1 << bits) - 1
    sign = 1 << (bits - 1) if code == "i" else 0
    for start in starts:
        end = start + bits
        value = int.from_bytes(data[start // 8 : (end + 7) // 8], "big") >> (-end % 8) & mask
        yield value != 0 if code == "b" else (value ^ sign) - sign


def encode(descriptor: Descriptor, value: Any) -> np.ndarray[Any, Any] | bytes:
    """Return the bytes of a value as they are sent.

    Parameters
    ----------
    descriptor : Descriptor
        What the value looks like.
    value : object
        Anything that NumPy makes an array of the right shape of; for one dimension also a str
        or bytes, whose characters are the elements. NumPy's conversions apply, so that a float
        is cut to an integer.

    Returns
    -------
    ndarray or bytes
        For native types a C-contiguous array whose bytes in order are what is sent: the memory of
        `value` itself if that is an array of this dtype and order. Else the packed bits.

    Raises
    ------
    ValueError
        If the value is None, its shape does not fit, or a number does not fit its field.
    OverflowError
        If a Python integer does not fit a native type.
    """
    if value is None:
        raise ValueError("Cannot send a value of None")
    dtype = descriptor._internal_dtype
    shape = descriptor.shape
    if dtype.hasobject:
        return _encode_packed(descriptor, value)
    if len(shape) == 1 and isinstance(value, _TEXT):
        value = [value[i : i + 1] for i in range(len(value))]
    order: Any = descriptor.order
    array: np.ndarray[Any, Any] = np.asarray(value, dtype, order=order)
    if array.shape != shape:
        _check_shape(descriptor, array.shape)
    if order == "F":
        array = array.T
    return array if dtype.kind in _PLAIN_KINDS else _exportable(array)


def _exportable(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the array, or its bytes if it is of a dtype that is no format of buffers: times."""
    try:
        memoryview(array)  # type: ignore[arg-type]
    except ValueError:
        return array.reshape(-1).view(np.uint8)
    return array


def _check_shape(descriptor: Descriptor, shape: tuple[int, ...]) -> None:
    if not descriptor.compatible_shape(shape):
        raise ValueError(f"Value has shape {shape}, expected {descriptor.shape}")


def _encode_packed(descriptor: Descriptor, value: Any) -> bytes:
    """Return the bytes of a value whose elements are no native types."""
    fields = descriptor.format or []
    shape = descriptor.shape
    single = len(fields) == 1
    if single and not shape and isinstance(value, _INTEGERS):
        code, bits = fields[0]
        return _pack_integer(int(value), code, bits)
    dtype = descriptor._internal_dtype
    if len(shape) == 1 and isinstance(value, _TEXT):
        value = [value[i : i + 1] for i in range(len(value))]
    # Whole numbers in an array need not become objects first.
    keep = single and isinstance(value, np.ndarray) and value.dtype.kind in "uib"
    array = np.asarray(value) if keep else np.asarray(value, dtype)
    if array.shape != shape:
        _check_shape(descriptor, array.shape)
    return _pack(array.reshape(-1), fields)


def _out_of_range(number: int, code: str, bits: int) -> NoReturn:
    raise ValueError(f"{number} is out of range for {code}{bits}")


def _pack_integer(number: int, code: str, bits: int) -> bytes:
    """Return one integer or boolean, with zeros up to a whole byte."""
    if code == "b":
        number = number != 0
    elif code == "u":
        if number < 0 or number >> bits:
            _out_of_range(number, code, bits)
    else:
        if not -(1 << bits - 1) <= number < 1 << bits - 1:
            _out_of_range(number, code, bits)
        number &= (1 << bits) - 1
    n_bytes = (bits + 7) >> 3
    return (number << 8 * n_bytes - bits).to_bytes(n_bytes, "big")


def _pack(array: np.ndarray[Any, Any], fields: Sequence[tuple[str, int]]) -> bytes:
    """Return the records of a one-dimensional array, bit-packed, with zeros up to a whole byte."""
    names = array.dtype.names
    n_bits = sum(bits for _, bits in fields)
    n_records = len(array)
    packed = []
    # A block is a multiple of 8 records, so that each but the last is whole bytes.
    block = max(8, _PACKED_BITS // n_bits // 8 * 8)
    for first in range(0, n_records, block):
        part = array[first : first + block]
        digits = np.empty((len(part), n_bits), np.uint8)
        start = 0
        for i, (code, bits) in enumerate(fields):
            column = part if names is None else part[names[i]]
            digits[:, start : start + bits] = _digits(column, code, bits)
            start += bits
        packed.append(np.packbits(digits.reshape(-1)).tobytes())
    return b"".join(packed)


def _digits(column: np.ndarray[Any, Any], code: str, bits: int) -> np.ndarray[Any, Any]:
    """Return the bits of a field of many records, shape ``(n_records, bits)``, dtype ``uint8``."""
    data: np.ndarray[Any, Any]
    if code == "f":
        data = column.astype(f">f{bits // 8}")
    elif code == "c":
        data = column.astype("S1")
    elif code == "b":
        wide = np.zeros((len(column), bits), np.uint8)
        wide[:, -1] = column.astype(bool)
        return wide
    else:
        data = _integers(column, code, bits)
    digits = np.unpackbits(
        np.ascontiguousarray(data).view(np.uint8).reshape(len(column), -1), axis=1
    )
    return digits[:, digits.shape[1] - bits :]


def _integers(column: np.ndarray[Any, Any], code: str, bits: int) -> np.ndarray[Any, Any]:
    """Return integers in big-endian bytes, as many as `bits` take or more.

    Raises
    ------
    ValueError
        If one is out of range.
    """
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if code == "i" else (0, (1 << bits) - 1)
    numbers: Any
    if column.dtype.kind in "uib":
        numbers, extremes = column, (int(column.min()), int(column.max()))
    else:
        numbers = [int(number) for number in column.tolist()]
        extremes = min(numbers), max(numbers)
    for extreme in extremes:
        if not low <= extreme <= high:
            _out_of_range(extreme, code, bits)
    if bits <= 64:
        return np.asarray(numbers, np.int64 if code == "i" else np.uint64).astype(f">{code}8")
    n_bytes = (bits + 7) // 8
    text = b"".join(int(v).to_bytes(n_bytes, "big", signed=code == "i") for v in numbers)
    return np.frombuffer(text, f"V{n_bytes}")
