"""What an ordinary server would understand of bytes that it got."""

from __future__ import annotations

import h11


def understood(data: bytes) -> list[str]:
    """The first lines of all whole requests, as h11 reads them."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    found: list[str] = []
    line = ""
    while True:
        try:
            event = server.next_event()
        except h11.RemoteProtocolError:
            return found
        match event:
            case h11.Request():
                line = f"{event.method.decode()} {event.target.decode()} HTTP/{event.http_version.decode()}"
            case h11.EndOfMessage():
                found.append(line)
                server.send(h11.Response(status_code=200, headers=[]))
                server.send(h11.EndOfMessage())
                if server.our_state is h11.MUST_CLOSE:
                    return found
                server.start_next_cycle()
            case h11.NEED_DATA | h11.PAUSED:
                return found
