"""Executes a program with only the named system calls: `python -m tests.helpers.seccomp NAMES -- WORDS`.

Any other call ends it with SIGSYS, and memory cannot be writable and executable. systemd does the same for
SystemCallFilter and MemoryDenyWriteExecute (systemd.exec(5)), with the same library.
"""

import ctypes
import errno
import os
import sys

# seccomp.h
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_MASKED_EQUAL = 7
# mman.h
_WRITE, _EXEC = 2, 4


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


def main(names: list[str], words: list[str]) -> None:
    """Restrict this process, and execute the program."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_KILL_PROCESS)))
    for name in names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0 and name not in ("mmap", "mprotect"):
            _must(library.seccomp_rule_add(context, ctypes.c_uint32(_ALLOW), number, 0))
    deny = ctypes.c_uint32(_ERRNO | errno.EPERM)
    allow = ctypes.c_uint32(_ALLOW)
    for name, forbidden in (("mmap", _WRITE | _EXEC), ("mprotect", _EXEC)):
        number = library.seccomp_syscall_resolve_name(name.encode())
        for value in range(8):
            action = deny if value & forbidden == forbidden else allow
            comparison = _Comparison(2, _MASKED_EQUAL, 7, value)
            _must(library.seccomp_rule_add(context, action, number, 1, comparison))
    _must(library.seccomp_load(context))
    os.execvp(words[0], words)


def _must(result: int) -> None:
    if result:
        raise OSError(-result, os.strerror(-result))


if __name__ == "__main__":
    end = sys.argv.index("--")
    main(sys.argv[1:end], sys.argv[end + 1 :])
