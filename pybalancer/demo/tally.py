"""What was seen in the demo: counted while it runs, told at its end."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Tally:
    """Counts since the start; ``connected`` is of now."""

    connected: int = 0
    connections: int = 0
    """Handshakes completed."""
    messages: int = 0
    """Echoes that came back as they were sent."""
    wrong: int = 0
    """Echoes that did not: there is no excuse for one."""
    lost: int = 0
    """Connections that ended under a client."""
    reconnects: int = 0
    """Connections made by a client that had lost its last one."""
    refused: int = 0
    """Attempts that got no connection."""
    kills: int = 0
    returns: int = 0
    seconds: float = 0.0
    spread: dict[str, int] = field(default_factory=dict)
    """Tunnels that each backend got, over the whole run."""

    @property
    def fine(self) -> bool:
        """Whether it was what a balancer should show."""
        return self.messages > 0 and self.wrong == 0

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "seconds": round(self.seconds, 1),
            "connections": self.connections,
            "messages": self.messages,
            "wrong_echoes": self.wrong,
            "connections_lost": self.lost,
            "reconnects": self.reconnects,
            "attempts_refused": self.refused,
            "kills": self.kills,
            "returns": self.returns,
            "tunnels_by_backend": dict(self.spread),
        }

    def lines(self) -> list[str]:
        """For people."""
        total = sum(self.spread.values()) or 1
        shares = ", ".join(f"{name} {count} ({count / total:.0%})" for name, count in self.spread.items())
        return [
            f"{self.seconds:.0f} s: {self.connections} connections, {self.messages} messages echoed, "
            f"{self.wrong} wrong",
            f"{self.kills} backends killed, {self.returns} brought back; {self.lost} connections lost "
            f"with them, {self.reconnects} reconnected, {self.refused} attempts refused",
            f"spread of new tunnels: {shares}",
        ]
