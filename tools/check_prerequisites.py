"""What a build needs besides pip, and what its tests need: checked first, because the errors of compilers are
long.

As root on Debian what is missing is installed; otherwise this says what to install.
"""

import os
import shutil
import subprocess
import sys
import sysconfig

DEBIAN = {
    "cc": "build-essential",
    "venv": "python3-venv",
    "chromium": "chromium",
    "ip": "iproute2",
    "nft": "nftables",
}
FOR_TESTS = {"chromium", "ip", "nft"}
"""What can be built without."""


def missing() -> list[str]:
    gaps = [] if shutil.which("cc") or shutil.which("gcc") else ["cc"]
    try:
        import ensurepip  # noqa: F401  # Debian packs it apart.
        import venv  # noqa: F401
    except ImportError:
        gaps.append("venv")
    # These two are where a user's own path may not lead.
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    gaps += [name for name in sorted(FOR_TESTS) if not shutil.which(name, path=path)]
    return gaps


def main() -> int:
    if sys.version_info < (3, 11):  # noqa: UP036 - it is run by whatever Python there is
        print(f"pybalancer needs Python 3.11 or newer, this is {sys.version.split()[0]}", file=sys.stderr)
        return 1
    gaps = missing()
    packages = [DEBIAN[gap] for gap in gaps]
    if gaps and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        install = ["install", "-y", "-qq", "--no-install-recommends", *packages]
        for command in (["update", "-qq"], install):
            subprocess.run(["apt-get", *command], env=environment, check=False, stdout=subprocess.DEVNULL)
        gaps = missing()
    if gaps:
        packages = [DEBIAN[gap] for gap in gaps]
        print(f"missing: {', '.join(gaps)}; on Debian: apt-get install {' '.join(packages)}", file=sys.stderr)
    if set(gaps) - FOR_TESTS:
        return 1
    if not shutil.which("cargo"):
        print("missing: a Rust toolchain (cargo); see https://rustup.rs", file=sys.stderr)
        return 1
    if sysconfig.get_platform().split("-")[0] != "linux":
        print("pybalancer runs on Linux: it is built on epoll and splice", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
