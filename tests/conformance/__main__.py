"""The whole suite, for ``make conformance``: minutes. Reports for people are left in the directory given."""

import sys
from pathlib import Path

from .suite import Comparison, of_clients, of_servers

HOURS = 3600.0


def tell(title: str, found: Comparison) -> bool:
    verdicts = list(found.through.verdicts().values())
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
    print(f"{title}: {len(verdicts)} cases through pybalancer: {counts}")
    for line in found.differences:
        print(f"  {line}")
    print("  the reports differ" if found.differences else "  the same as directly", flush=True)
    return not found.differences


def main(directory: Path) -> int:
    alike = [
        tell(title, run(directory / title, timeout=HOURS))
        for title, run in (("clients", of_clients), ("servers", of_servers))
    ]
    print(f"reports: {directory}")
    return 0 if all(alike) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
