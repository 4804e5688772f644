"""PyPI's autobahn, on Twisted."""

from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.compress import PerMessageDeflateOffer, PerMessageDeflateOfferAccept
from twisted.internet import reactor

from tests.wire.servers.app import BACKLOG, FRAGMENT, LEAVING, PATIENCE, ended, listening, report, start

options = start()


class Conversation(WebSocketServerProtocol):
    def onConnect(self, request: Any) -> None:
        self.at = request.path

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        if self.at == "/leave":
            # Its sendClose has no 1001, which it keeps to itself.
            self.sendCloseFrame(LEAVING[0], LEAVING[1].encode())
            return
        if self.at == "/ping":
            self.sendPing(payload)
            return
        self.sendMessage(report(options.name, payload if isBinary else payload.decode()).encode())
        if self.at == "/fragments":
            self.sendMessage(payload, isBinary, fragmentSize=FRAGMENT)
        elif self.at != "/digest":
            self.sendMessage(payload, isBinary)

    def onPong(self, payload: bytes) -> None:
        super().onPong(payload)
        if self.at == "/ping":
            self.sendMessage(b"pong")

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        ended(code, reason)


def accept(offers: list[Any]) -> Any:
    for offer in offers:
        if isinstance(offer, PerMessageDeflateOffer):
            return PerMessageDeflateOfferAccept(offer)
    return None


# With an external port it asks that clients name that one, and not its own, in Host.
factory = WebSocketServerFactory(externalPort=options.external_port)
factory.protocol = Conversation
factory.setProtocolOptions(
    maxFramePayloadSize=options.largest,
    maxMessagePayloadSize=options.largest,
    openHandshakeTimeout=PATIENCE,
    closeHandshakeTimeout=PATIENCE,
    autoPingInterval=options.ping_interval,
    perMessageCompressionAccept=accept,
)
port = reactor.listenTCP(0, factory, backlog=BACKLOG, interface="127.0.0.1")
listening(port.getHost().port)
reactor.run()
