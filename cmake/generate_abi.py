"""C headers -> an out-of-line cffi ABI module amk/_NAME.py (ffi only; the library is opened at run time).

Usage: generate_abi.py HEADER... OUTPUT, as csrc/amk.h -> _amk_abi.py. Later headers may use the types of earlier ones.
Parsing the headers here, at build time, keeps `import amk` fast.
"""

import sys
from pathlib import Path

import cffi

BEGIN, END = "/* amk-cdef-begin */", "/* amk-cdef-end */"


def main() -> None:
    *headers, output = sys.argv[1:]
    ffi = cffi.FFI()
    for header in headers:
        text = Path(header).read_text(encoding="utf-8")
        ffi.cdef(text[text.index(BEGIN) + len(BEGIN) : text.index(END)])
    ffi.set_source(f"amk.{Path(output).stem}", None)
    ffi.emit_python_code(output)


if __name__ == "__main__":
    main()
