"""``python -m bench.ripple.restart SOCKET NAME``: have the bench restart a backend; exits 0 when it listens.

It stands where an operator's `systemctl restart app@NAME` would.
"""

import socket
import sys


def main() -> int:
    where, name = sys.argv[1:]
    with socket.socket(socket.AF_UNIX) as bench:
        bench.connect(where)
        bench.sendall(name.encode() + b"\n")
        answer = bench.makefile().readline().strip()
    print(answer)
    return 0 if answer == "restarted" else 1


if __name__ == "__main__":
    sys.exit(main())
