#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turn a file into a C header that holds its bytes: embed.py INPUT OUTPUT NAME."""

import sys
from pathlib import Path


def main() -> None:
    source, target, name = sys.argv[1:]
    data = Path(source).read_bytes()
    # Of the alignment that a reader of ELF headers expects.
    lines = [f"static const unsigned char {name}[] __attribute__((aligned(8))) = {{"]
    lines += ["\t" + ",".join(map(str, data[i : i + 24])) + "," for i in range(0, len(data), 24)]
    lines += ["};", f"static const unsigned int {name}_len = {len(data)};", ""]
    Path(target).write_text("\n".join(lines))


if __name__ == "__main__":
    main()
