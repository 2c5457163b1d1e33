"""The numbers of the SPEAD protocol, under the names that spead2 gives them.

Nothing here but constants, so that every other module may import it.
"""

from typing import Final

# Item identifiers with a meaning of their own.
NULL_ID: Final = 0x00
HEAP_CNT_ID: Final = 0x01
HEAP_LENGTH_ID: Final = 0x02
PAYLOAD_OFFSET_ID: Final = 0x03
PAYLOAD_LENGTH_ID: Final = 0x04
DESCRIPTOR_ID: Final = 0x05
STREAM_CTRL_ID: Final = 0x06

# Item identifiers inside a descriptor.
DESCRIPTOR_NAME_ID: Final = 0x10
DESCRIPTOR_DESCRIPTION_ID: Final = 0x11
DESCRIPTOR_SHAPE_ID: Final = 0x12
DESCRIPTOR_FORMAT_ID: Final = 0x13
DESCRIPTOR_ID_ID: Final = 0x14
DESCRIPTOR_DTYPE_ID: Final = 0x15
# The type stubs of spead2 spell it like this; code that was checked against them may too.
DESCTIPTOR_DTYPE_ID: Final = DESCRIPTOR_DTYPE_ID

# The first identifier that is free for applications.
UNRESERVED_ID: Final = 0x1000

# Values of the stream control item.
CTRL_STREAM_START: Final = 0
CTRL_DESCRIPTOR_REISSUE: Final = 1
CTRL_STREAM_STOP: Final = 2
CTRL_DESCRIPTOR_UPDATE: Final = 3

# Bits of a flavour's bug compatibility.
BUG_COMPAT_DESCRIPTOR_WIDTHS: Final = 1
BUG_COMPAT_SHAPE_BIT_1: Final = 2
BUG_COMPAT_SWAP_ENDIAN: Final = 4
BUG_COMPAT_PYSPEAD_0_5_2: Final = 7

# How payload is copied into a heap.
MEMCPY_STD: Final = 0
MEMCPY_NONTEMPORAL: Final = 1

# The packet header.
MAGIC: Final = 0x53
VERSION: Final = 0x04
ITEM_POINTER_BITS: Final = 64
