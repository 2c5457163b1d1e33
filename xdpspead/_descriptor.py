"""Item descriptors: what the values of an item look like, and how a sender says so.

A descriptor travels as the value of an item, and that value is a whole SPEAD packet of its own.
`RawDescriptor` holds its fields as they were sent, `Descriptor` what they mean. Both steps take
bytes that anyone on the network can send, so everything here is bounded: a descriptor that
claims too much is a ValueError, and no claim is ever turned into an allocation.
"""

from __future__ import annotations

import ast
import logging
import operator
import re
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import numpy as np

from . import _protocol as proto
from ._flavour import Flavour

if TYPE_CHECKING:
    import numpy.typing as npt

_logger = logging.getLogger("xdpspead")

#: Most dimensions that a descriptor from the wire may have; NumPy has no more either.
MAX_DIMENSIONS: Final = 64
#: Most fields that the format of a descriptor from the wire may have.
MAX_FORMAT_FIELDS: Final = 4096
#: Longest NumPy header, in bytes, that a descriptor from the wire may have.
MAX_NUMPY_HEADER: Final = 65536
#: Deepest nesting of brackets in a NumPy header.
MAX_NUMPY_HEADER_DEPTH: Final = 16

_IMMEDIATE: Final = 1 << 63

# What a NumPy header is made of: brackets, commas, colons, strings, plain integers, constants.
# All else (operators, calls, floats, comments, deep nesting) is refused before the real parser
# sees it, because that one can be driven into exhausting its stack.
_TOKEN: Final = re.compile(
    r"""[ \t\r\n]*(?:
        (?P<open>[\[({]) | (?P<close>[\])}]) | [,:]
        | (?:True|False|None|-?[0-9]{1,20})(?![0-9A-Za-z_.])
        | [uUbB]?'(?:[^'\\\r\n]|\\[\\'"nrtxuU])*+'
        | [uUbB]?"(?:[^"\\\r\n]|\\[\\'"nrtxuU])*+"
    )""",
    re.VERBOSE,
)


class DescriptorPacketError(ValueError):
    """The bytes of a descriptor item are not a complete SPEAD packet with a descriptor."""


class _RawDescriptorLike(Protocol):
    """What `Descriptor.from_raw` reads."""

    @property
    def id(self) -> int: ...
    @property
    def name(self) -> bytes: ...
    @property
    def description(self) -> bytes: ...
    @property
    def shape(self) -> Sequence[int | None]: ...
    @property
    def format(self) -> Sequence[tuple[str, int]]: ...
    @property
    def numpy_header(self) -> bytes: ...


def _field_widths(address_bytes: int, bug_compat: int) -> tuple[int, int]:
    """Return the width in bytes of one dimension and of one format field of a descriptor."""
    if bug_compat & proto.BUG_COMPAT_DESCRIPTOR_WIDTHS:
        return 8, 4
    return 1 + address_bytes, 9 - address_bytes


def _split(what: str, data: bytes, width: int, most: int) -> list[bytes]:
    """Cut `data` into whole fields of `width` bytes, at most `most`; a partial one is ignored."""
    count = len(data) // width
    if count > most:
        raise ValueError(f"descriptor has {count} {what}, more than {most}")
    return [data[i * width : (i + 1) * width] for i in range(count)]


class RawDescriptor:
    """The fields of a descriptor as they were sent.

    Attributes
    ----------
    id : int
        Item identifier.
    name, description : bytes
        As sent; meant to be ASCII.
    shape : list of int or None
        Size of each dimension; None for a variable one. Negative sizes read back as None.
    format : list of tuple of (str, int)
        Type code and width in bits of each field; empty when `numpy_header` says it all.
    numpy_header : bytes
        Header dictionary of a NumPy file, or empty.
    """

    __slots__ = ("_format", "_shape", "description", "id", "name", "numpy_header")

    id: int
    name: bytes
    description: bytes
    numpy_header: bytes

    def __init__(self) -> None:
        self.id = 0
        self.name = b""
        self.description = b""
        self.numpy_header = b""
        self._shape: list[int | None] = []
        self._format: list[tuple[str, int]] = []

    @property
    def shape(self) -> list[int | None]:
        """Size of each dimension, None for a variable one (a copy: assign to change it)."""
        return list(self._shape)

    @shape.setter
    def shape(self, value: Sequence[int | None]) -> None:
        sizes = [None if size is None else operator.index(size) for size in value]
        self._shape = [None if size is None or size < 0 else size for size in sizes]

    @property
    def format(self) -> list[tuple[str, int]]:
        """Type code and width in bits of each field (a copy: assign to change it)."""
        return list(self._format)

    @format.setter
    def format(self, value: Sequence[tuple[str, int]]) -> None:
        fields = [(str(code), operator.index(bits)) for code, bits in value]
        for code, _ in fields:
            if len(code) != 1:
                raise ValueError(f"format code must be a single character, not {code!r}")
        self._format = fields

    def __repr__(self) -> str:
        return (
            f"RawDescriptor(id=0x{self.id:x}, name={self.name!r}, "
            f"description={self.description!r}, shape={self._shape!r}, "
            f"format={self._format!r}, numpy_header={self.numpy_header!r})"
        )

    @classmethod
    def from_packet(cls, packet: Any, bug_compat: int = 0) -> Self:
        """Return the descriptor that the value of a descriptor item holds.

        Parameters
        ----------
        packet : bytes-like
            Value of the item: a whole SPEAD packet, of whatever flavour its header says, that
            is a whole heap. Bytes behind its payload are ignored.
        bug_compat : int, optional
            Bitwise or of ``BUG_COMPAT_*`` constants, from the flavour of the surrounding heap.

        Raises
        ------
        DescriptorPacketError
            If the bytes are no such packet, or have no item identifier. It is a ValueError.
        ValueError
            If the descriptor has more than `MAX_DIMENSIONS` dimensions, `MAX_FORMAT_FIELDS`
            fields, or a NumPy header longer than `MAX_NUMPY_HEADER` bytes.
        """
        data = bytes(packet)
        address_bytes, pointers, payload = _decode_packet(data)
        raw = cls()
        shape_width, format_width = _field_widths(address_bytes, bug_compat)
        shape = form = b""
        for item_id, is_immediate, number, value in _sorted_items(pointers, payload, address_bytes):
            if item_id == proto.DESCRIPTOR_NAME_ID:
                raw.name = value
            elif item_id == proto.DESCRIPTOR_DESCRIPTION_ID:
                raw.description = value
            elif item_id == proto.DESCRIPTOR_SHAPE_ID:
                shape += value[: len(value) // shape_width * shape_width]
            elif item_id == proto.DESCRIPTOR_FORMAT_ID:
                form += value[: len(value) // format_width * format_width]
            elif item_id == proto.DESCRIPTOR_ID_ID:
                if is_immediate:
                    raw.id = number
            elif item_id == proto.DESCRIPTOR_DTYPE_ID:
                raw.numpy_header = value
        if raw.id == 0:
            raise DescriptorPacketError("incomplete descriptor (no ID)")
        if len(raw.numpy_header) > MAX_NUMPY_HEADER:
            raise ValueError(
                f"numpy header is {len(raw.numpy_header)} bytes long, more than {MAX_NUMPY_HEADER}"
            )
        if raw.numpy_header:
            return raw
        variable = 2 if bug_compat & proto.BUG_COMPAT_SHAPE_BIT_1 else 1
        raw._shape = [
            None if field[0] & variable else int.from_bytes(field[1:], "big")
            for field in _split("dimensions", shape, shape_width, MAX_DIMENSIONS)
        ]
        raw._format = [
            (chr(field[0]), int.from_bytes(field[1:], "big"))
            for field in _split("format fields", form, format_width, MAX_FORMAT_FIELDS)
        ]
        return raw

    def to_packet(self, flavour: Flavour) -> bytes:
        """Return the value of the descriptor item that says all this: a whole SPEAD packet.

        Parameters
        ----------
        flavour : Flavour
            Flavour of the surrounding heap, and of this packet. ``BUG_COMPAT_DESCRIPTOR_WIDTHS``
            and ``BUG_COMPAT_SHAPE_BIT_1`` change how shape and format are written.

        Raises
        ------
        ValueError
            If something does not fit the flavour: the identifier, a size, the width of a field
            in bits, or all of it together.
        """
        return _write_packet(
            operator.index(self.id),
            bytes(self.name),
            bytes(self.description),
            tuple(self._shape),
            tuple(self._format),
            bytes(self.numpy_header),
            flavour.heap_address_bits,
            flavour.bug_compat,
        )


# Descriptors are sent again and again for receivers that come late.
@lru_cache(maxsize=256)
def _write_packet(
    id: int,
    name: bytes,
    description: bytes,
    shape: tuple[int | None, ...],
    format: tuple[tuple[str, int], ...],
    numpy_header: bytes,
    address_bits: int,
    bug_compat: int,
) -> bytes:
    """Return the packet of a descriptor, in the flavour of `address_bits` and `bug_compat`."""
    what = f"descriptor 0x{id:x} ({name.decode('latin-1')!r})"
    if not 0 < id < 1 << (63 - address_bits):
        raise ValueError(
            f"{what}: in a heap of SPEAD-64-{address_bits} an identifier must be from 1 to "
            f"{(1 << (63 - address_bits)) - 1:#x}"
        )
    shape_width, format_width = _field_widths(address_bits // 8, bug_compat)
    variable = 2 if bug_compat & proto.BUG_COMPAT_SHAPE_BIT_1 else 1
    fields = [
        (proto.DESCRIPTOR_NAME_ID, name),
        (proto.DESCRIPTOR_DESCRIPTION_ID, description),
        (proto.DESCRIPTOR_FORMAT_ID, _write_format(what, format, format_width)),
        (proto.DESCRIPTOR_SHAPE_ID, _write_shape(what, shape, shape_width, variable)),
    ]
    if numpy_header:
        fields.append((proto.DESCRIPTOR_DTYPE_ID, numpy_header))
    payload = b"".join([value for _, value in fields])
    if not payload:
        # As in spead2, no heap is without payload.
        fields.append((proto.NULL_ID, b""))
        payload = b"\0"
    length = len(payload)
    if length >> address_bits:
        raise ValueError(
            f"{what} is {length} bytes long, too much for {address_bits} address bits: shorten its "
            "description or use a flavour with more of them"
        )
    immediate = (
        (proto.HEAP_CNT_ID, 1),
        (proto.HEAP_LENGTH_ID, length),
        (proto.PAYLOAD_OFFSET_ID, 0),
        (proto.PAYLOAD_LENGTH_ID, length),
        (proto.DESCRIPTOR_ID_ID, id),
    )
    pointers = [_IMMEDIATE | item_id << address_bits | number for item_id, number in immediate]
    offset = 0
    for item_id, value in fields:
        pointers.append(item_id << address_bits | offset)
        offset += len(value)
    return (
        struct.pack(
            f">BBBBHH{len(pointers)}Q",
            proto.MAGIC,
            proto.VERSION,
            8 - address_bits // 8,
            address_bits // 8,
            0,
            len(pointers),
            *pointers,
        )
        + payload
    )


def _write_format(what: str, format: Iterable[tuple[str, int]], width: int) -> bytes:
    """Return a format, each field in `width` bytes: type code and width in bits."""
    limit = 1 << 8 * (width - 1)
    for code, bits in format:
        if not 0 <= bits < limit:
            raise ValueError(
                f"{what}: a field of {bits} bits cannot be described in this flavour, which has "
                f"{8 * width - 8} bits for its width"
            )
        if not code.isascii():
            raise ValueError(f"{what}: type code {code!r} is not ASCII")
    return b"".join([code.encode() + bits.to_bytes(width - 1, "big") for code, bits in format])


def _write_shape(what: str, shape: Iterable[int | None], width: int, variable: int) -> bytes:
    """Return a shape, each dimension in `width` bytes: a flag (`variable` or 0) and the size."""
    limit = 1 << 8 * (width - 1)
    for size in shape:
        if size is not None and size >= limit:
            raise ValueError(
                f"{what}: a dimension of {size} cannot be described in this flavour, which has "
                f"{8 * width - 8} bits for it"
            )
    words = [variable * limit if size is None else size for size in shape]
    return b"".join([word.to_bytes(width, "big") for word in words])


def _decode_packet(data: bytes) -> tuple[int, list[int], bytes]:
    """Return the address width in bytes, the ordinary item pointers and the payload of a heap.

    Pointers of the items that say where a packet belongs are not ordinary: they neither have a
    value nor end that of another item.
    """
    if len(data) < 8:
        raise DescriptorPacketError(f"descriptor rejected because too small ({len(data)} bytes)")
    magic, version, id_bytes, address_bytes, _, n_items = struct.unpack_from(">BBBBHH", data)
    if magic != proto.MAGIC or version != proto.VERSION:
        raise DescriptorPacketError("descriptor rejected because magic or version did not match")
    if id_bytes == 0 or address_bytes == 0 or id_bytes + address_bytes != 8:
        raise DescriptorPacketError(
            f"descriptor rejected because flavour is not SPEAD-64-XX "
            f"({id_bytes} + {address_bytes} bytes)"
        )
    if n_items > (len(data) - 8) // 8:
        raise DescriptorPacketError(
            f"descriptor rejected because the items overflow it ({n_items} items)"
        )
    special: dict[int, int] = {}
    ordinary: list[int] = []
    reach = 0
    bits = 8 * address_bytes
    mask = (1 << bits) - 1
    for pointer in struct.unpack_from(f">{n_items}Q", data, 8):
        item_id = (pointer & ~_IMMEDIATE) >> bits
        is_special = proto.HEAP_CNT_ID <= item_id <= proto.PAYLOAD_LENGTH_ID
        if not is_special:
            ordinary.append(pointer)
        if not pointer & _IMMEDIATE:
            reach = max(reach, pointer & mask)
        elif is_special:
            special[item_id] = pointer & mask
    # As in spead2, which never sees such a heap. One of unknown length it does see.
    stop = _IMMEDIATE | proto.STREAM_CTRL_ID << bits | proto.CTRL_STREAM_STOP
    if stop in ordinary and proto.HEAP_LENGTH_ID in special:
        raise DescriptorPacketError("descriptor rejected because it stops the stream")
    start = 8 + 8 * n_items
    length = _check_payload(special, len(data) - start)
    if reach > length:
        raise DescriptorPacketError(
            f"descriptor rejected because an item lies outside of it ({reach} > {length})"
        )
    return address_bytes, ordinary, data[start : start + length]


def _check_payload(special: dict[int, int], available: int) -> int:
    """Return the payload length, once it is sure that the packet is a whole heap."""
    for item_id, what in (
        (proto.HEAP_CNT_ID, "heap id"),
        (proto.PAYLOAD_OFFSET_ID, "payload offset"),
        (proto.PAYLOAD_LENGTH_ID, "payload length"),
    ):
        if item_id not in special:
            raise DescriptorPacketError(f"descriptor rejected because it has no {what}")
    length = special[proto.PAYLOAD_LENGTH_ID]
    if length > available:
        raise DescriptorPacketError(
            f"descriptor rejected because payload length overflows it ({length} > {available})"
        )
    heap_length = special.get(proto.HEAP_LENGTH_ID, length)
    if special[proto.PAYLOAD_OFFSET_ID] != 0 or length != heap_length:
        raise DescriptorPacketError("descriptor rejected because it is not a whole heap")
    return length


def _sorted_items(
    pointers: Iterable[int], payload: bytes, address_bytes: int
) -> list[tuple[int, bool, int, bytes]]:
    """Return (id, is immediate, address or value, bytes) in the order of a received heap.

    That is: addressed items by offset, then immediate ones by value. An addressed item ends
    where the next one starts; those without any bytes are left out.
    """
    bits = 8 * address_bytes
    mask = (1 << bits) - 1
    unique = dict.fromkeys(pointers)
    order = sorted(unique, key=lambda pointer: (pointer & _IMMEDIATE, pointer & mask))
    items = []
    for i, pointer in enumerate(order):
        item_id = (pointer & ~_IMMEDIATE) >> bits
        number = pointer & mask
        if pointer & _IMMEDIATE:
            items.append((item_id, True, number, number.to_bytes(address_bytes, "big")))
            continue
        end = len(payload)
        if i + 1 < len(order) and not order[i + 1] & _IMMEDIATE:
            end = order[i + 1] & mask
        if end > number:
            items.append((item_id, False, number, payload[number:end]))
    return items


def parse_packets(packets: Iterable[Any], bug_compat: int) -> list[RawDescriptor]:
    """Return the descriptors of a heap; values that hold none are logged and left out.

    Parameters
    ----------
    packets : iterable of bytes-like
        Values of the descriptor items.
    bug_compat : int
        Bitwise or of ``BUG_COMPAT_*`` constants.

    Raises
    ------
    ValueError
        If a descriptor claims more than the limits of `RawDescriptor.from_packet` allow.
    """
    descriptors = []
    for packet in packets:
        try:
            descriptors.append(RawDescriptor.from_packet(packet, bug_compat))
        except DescriptorPacketError as error:
            _logger.info("%s", error)
    return descriptors


def _format_fields(format: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return `format` as a list of checked pairs of type code and width in bits."""
    fields = [(code, operator.index(bits)) for code, bits in format]
    if not fields:
        raise ValueError("empty format")
    for code, bits in fields:
        if bits < 0:
            raise ValueError("negative-length field")
        if bits == 0:
            raise ValueError("zero-length field (bug_compat mismatch?)")
        if not (
            code in ("u", "i", "b")
            or (code == "f" and bits in (32, 64))
            or (code, bits) == ("c", 8)
        ):
            raise ValueError(f"illegal format ({code}, {bits})")
    return fields


def _field_type(code: str, bits: int) -> str:
    """Return the NumPy type that holds a field: a native one if there is one, else objects."""
    if code == "c":
        return "S1"
    if code == "f" or (code in "ui" and bits in (8, 16, 32, 64)):
        return f">{code}{bits // 8}"
    if code == "b" and bits == 8:
        return "?"
    return "O"


def _format_dtype(fields: list[tuple[str, int]]) -> np.dtype[Any]:
    """Return the dtype of values with this format: structured if there are several fields."""
    types = [_field_type(code, bits) for code, bits in fields]
    if len(types) == 1:
        return np.dtype(types[0])
    return np.dtype([(f"f{i}", name) for i, name in enumerate(types)])


def _check_literal(text: str) -> None:
    """Raise ValueError unless `text` has only what the literals of a NumPy header are made of."""
    depth = 0
    position = 0
    text = text.rstrip(" \t\r\n")
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise ValueError(f"unexpected text at offset {position}")
        depth += (token["open"] is not None) - (token["close"] is not None)
        if depth > MAX_NUMPY_HEADER_DEPTH:
            raise ValueError(f"nested deeper than {MAX_NUMPY_HEADER_DEPTH} levels")
        position = token.end()


def _is_subarray_shape(shape: Any) -> bool:
    return isinstance(shape, int) or (
        isinstance(shape, tuple) and all(isinstance(size, int) for size in shape)
    )


def _is_dtype_description(descr: Any) -> bool:
    """Return whether `descr` has one of the forms in which a plain dtype is described."""
    if descr is None or isinstance(descr, str | bytes):
        return True
    if isinstance(descr, tuple):
        return len(descr) == 2 and _is_dtype_description(descr[0]) and _is_subarray_shape(descr[1])
    if isinstance(descr, list):
        return all(
            isinstance(field, tuple)
            and len(field) in (2, 3)
            and _is_dtype_description(field[1])
            and _is_subarray_shape(field[2] if len(field) == 3 else ())
            for field in descr
        )
    if isinstance(descr, dict):
        formats = descr.get("formats")
        return isinstance(formats, list | tuple) and all(map(_is_dtype_description, formats))
    return False


def _parse_descr(descr: Any) -> np.dtype[Any]:
    """Return the dtype that the `descr` entry of a NumPy header describes."""
    try:
        if not _is_dtype_description(descr):
            raise TypeError("no description of a dtype")
        dtype: np.dtype[Any] = np.dtype(descr)
    # Whatever NumPy dislikes about it (there are many types), it is the sender's fault.
    except Exception as error:
        raise ValueError(f"descr is not a valid dtype descriptor: {descr!r} ({error})") from error
    return dtype


def _parse_numpy_header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any], str]:
    """Return the shape, dtype and order that the header of a NumPy file describes.

    Raises
    ------
    ValueError
        If the header is not ASCII, is too long or too deeply nested, is not a dictionary of
        plain literals with exactly the right keys, or describes something impossible.
    """
    if len(header) > MAX_NUMPY_HEADER:
        raise ValueError(f"numpy header is {len(header)} bytes long, more than {MAX_NUMPY_HEADER}")
    text = header.decode("ascii")
    try:
        _check_literal(text)
        values = ast.literal_eval(text)
    # Syntax, type, recursion: all mean that the text is no header.
    except Exception as error:
        raise ValueError(f"Cannot parse descriptor: {text!r} ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"Descriptor is not a dictionary: {values!r}")
    if values.keys() != {"descr", "fortran_order", "shape"}:
        raise ValueError(
            f"Descriptor does not contain the correct keys: {sorted(map(str, values))!r}"
        )
    shape = values["shape"]
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"shape is not valid: {shape!r}")
    if not isinstance(values["fortran_order"], bool):
        raise ValueError(f"fortran_order is not a valid bool: {values['fortran_order']!r}")
    return shape, _parse_descr(values["descr"]), "F" if values["fortran_order"] else "C"


class Descriptor:
    """What the values of an item look like.

    Parameters
    ----------
    id : int
        Item identifier, 0x1000 or more for applications.
    name, description : str
        Short name, and text for humans; ASCII.
    shape : sequence of int or None
        Size of each dimension. With `format`, one dimension may be None: variable.
    dtype : numpy dtype or anything that `numpy.dtype` takes, optional
        Type of the elements. Exactly one of `dtype` and `format` must be given.
    order : {"C", "F"}, optional
        Order of the elements of an array; must be ``"C"`` with `format`.
    format : sequence of tuple of (str, int), optional
        Fields of one element: type code (``u``, ``i``, ``f``, ``b`` or ``c``) and width in bits.

    Raises
    ------
    ValueError
        If the arguments contradict each other, a field is illegal, or `dtype` has no size or
        holds Python objects.
    TypeError
        If `dtype` or `shape` is not what it should be.
    """

    id: int
    name: str
    description: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any] | None
    order: str
    format: list[tuple[str, int]] | None
    _internal_dtype: np.dtype[Any]

    def __init__(
        self,
        id: int,
        name: str,
        description: str,
        shape: Sequence[int | None],
        dtype: npt.DTypeLike | None = None,
        order: str = "C",
        format: Sequence[tuple[str, int]] | None = None,
    ) -> None:
        shape = tuple(None if size is None else operator.index(size) for size in shape)
        if any(size is not None and size < 0 for size in shape):
            raise ValueError(f"Dimensions must not be negative: {shape}")
        unknown = shape.count(None)
        if unknown > 1:
            raise ValueError("Cannot have multiple unknown dimensions")
        if dtype is not None:
            dtype = np.dtype(dtype)
            if dtype.hasobject:
                raise ValueError("Cannot use dtype that has reference-counted objects")
            if dtype.itemsize == 0:
                raise ValueError("Cannot use zero-sized dtype")
            if format is not None:
                raise ValueError("Only one of dtype and format can be specified")
            if unknown:
                raise ValueError("Cannot have unknown dimensions when using numpy descriptor")
            if order not in ("C", "F"):
                raise ValueError("Order must be 'C' or 'F'")
            self._internal_dtype = dtype
        else:
            if format is None:
                raise ValueError("One of dtype and format must be specified")
            if order != "C":
                raise ValueError("When specifying format, order must be 'C'")
            format = _format_fields(format)
            self._internal_dtype = _format_dtype(format)
        self.id = id
        self.name = name
        self.description = description
        self.shape = shape
        self.dtype = dtype
        self.order = order
        self.format = format

    def __repr__(self) -> str:
        kind = f"dtype={self.dtype!r}" if self.dtype is not None else f"format={self.format!r}"
        item_id = f"0x{self.id:x}" if isinstance(self.id, int) else repr(self.id)
        return (
            f"{type(self).__name__}({item_id}, {self.name!r}, {self.description!r}, "
            f"shape={self.shape!r}, {kind}, order={self.order!r})"
        )

    @property
    def itemsize_bits(self) -> int:
        """Width of one element in bits."""
        if self.format is None:
            return 8 * self._internal_dtype.itemsize
        total = 0
        for _, bits in self.format:
            total += bits
        return total

    def is_variable_size(self) -> bool:
        """Return whether the length of a value can vary."""
        return None in self.shape

    def allow_immediate(self) -> bool:
        """Return whether a value may be sent inside an item pointer.

        That takes a length that never varies, and is a whole number of bytes per element.
        """
        return None not in self.shape and self.itemsize_bits % 8 == 0

    def dynamic_shape(self, max_elements: int) -> Sequence[int]:
        """Return the shape of a value, given how many elements arrived.

        Parameters
        ----------
        max_elements : int
            Number of elements that arrived. A variable dimension takes as many as fit.
        """
        known = 1
        sizes = []
        for size in self.shape:
            if size is not None:
                known *= size
                sizes.append(size)
        if len(sizes) == len(self.shape):
            return tuple(sizes)
        variable = max_elements // known if known > 0 else 0
        return [variable if size is None else size for size in self.shape]

    def compatible_shape(self, shape: Sequence[int]) -> bool:
        """Return whether a value of this shape fits the descriptor."""
        return len(self.shape) == len(shape) and all(
            size is None or size == actual for size, actual in zip(self.shape, shape, strict=True)
        )

    @classmethod
    def from_raw(cls, raw_descriptor: _RawDescriptorLike, flavour: Flavour) -> Self:
        """Return the meaning of a raw descriptor.

        Parameters
        ----------
        raw_descriptor : RawDescriptor
            Descriptor as it was sent. Its NumPy header, if any, beats shape and format.
        flavour : Flavour
            Flavour of the heap; ``BUG_COMPAT_SWAP_ENDIAN`` swaps the byte order of the dtype.

        Raises
        ------
        ValueError
            If the descriptor makes no sense, or exceeds the limits of this module.
        """
        name = raw_descriptor.name.decode("ascii")
        description = raw_descriptor.description.decode("ascii")
        shape: Sequence[int | None]
        dtype: np.dtype[Any] | None = None
        order = "C"
        format: Sequence[tuple[str, int]] | None = None
        if raw_descriptor.numpy_header:
            shape, dtype, order = _parse_numpy_header(raw_descriptor.numpy_header)
            if flavour.bug_compat & proto.BUG_COMPAT_SWAP_ENDIAN:
                dtype = dtype.newbyteorder()
        else:
            shape = raw_descriptor.shape
            format = raw_descriptor.format
            if len(format) > MAX_FORMAT_FIELDS:
                raise ValueError(
                    f"descriptor has {len(format)} format fields, more than {MAX_FORMAT_FIELDS}"
                )
        if len(shape) > MAX_DIMENSIONS:
            raise ValueError(f"descriptor has {len(shape)} dimensions, more than {MAX_DIMENSIONS}")
        return cls(raw_descriptor.id, name, description, shape, dtype, order, format)

    def to_raw(self, flavour: Flavour) -> RawDescriptor:
        """Return the fields of this descriptor as they are sent.

        Parameters
        ----------
        flavour : Flavour
            Flavour of the heap; ``BUG_COMPAT_SWAP_ENDIAN`` swaps the byte order of the dtype.

        Raises
        ------
        TypeError
            If the identifier is not an integer.
        UnicodeEncodeError
            If name, description or the names of fields are not ASCII. It is a ValueError.
        """
        raw = RawDescriptor()
        raw.id = operator.index(self.id)
        raw.name = self.name.encode("ascii")
        raw.description = self.description.encode("ascii")
        raw.shape = self.shape
        if self.dtype is None:
            raw.format = self.format or []
            return raw
        dtype = self.dtype
        if flavour.bug_compat & proto.BUG_COMPAT_SWAP_ENDIAN:
            dtype = dtype.newbyteorder()
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": self.order == "F",
            "shape": self.shape,
        }
        raw.numpy_header = repr(header).encode("ascii")
        return raw
