from typing import Any

ffi: Any  # a compiled cffi.FFI, which carries no types
