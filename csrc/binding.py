# SPDX-License-Identifier: Apache-2.0
"""What cffi-gen-src runs to make the binding: xdpspead.h is the one declaration of everything."""

from pathlib import Path

import cffi

HEADER = Path(__file__).with_name("xdpspead.h")

ffibuilder = cffi.FFI()
ffibuilder.cdef(
    "".join(
        line
        for line in HEADER.read_text().splitlines(keepends=True)
        if not line.startswith(("#include", "#pragma"))
    )
)
ffibuilder.set_source("xdpspead._cffi", '#include "xdpspead.h"')
