"""amk.h -> the out-of-line cffi ABI module amk/_amk_abi.py (ffi only; the library is opened at run time).

Usage: generate_abi.py AMK_H OUTPUT. Parsing the header here, at build time, keeps `import amk` fast.
"""

import sys
from pathlib import Path

import cffi

BEGIN, END = "/* amk-cdef-begin */", "/* amk-cdef-end */"


def main() -> None:
    header, output = sys.argv[1:]
    text = Path(header).read_text(encoding="utf-8")
    ffi = cffi.FFI()
    ffi.cdef(text[text.index(BEGIN) + len(BEGIN) : text.index(END)])
    ffi.set_source("amk._amk_abi", None)
    ffi.emit_python_code(output)


if __name__ == "__main__":
    main()
