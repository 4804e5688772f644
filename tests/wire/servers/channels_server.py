"""A Django project in one file, with Django Channels, on daphne.

Its host is ``app.test``: another Host is no page of its, and a WebSocket from another Origin is not let in.
"""

# First, because it chooses Twisted's reactor.
from daphne.server import Server  # isort: skip

import sys
from typing import Any

import django
from django.conf import settings

from tests.wire.servers.app import ended, listening, start

options = start()
settings.configure(
    ALLOWED_HOSTS=["app.test"],
    ROOT_URLCONF="__main__",
    SECRET_KEY="no secret",
    MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from channels.security.websocket import AllowedHostsOriginValidator  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.http import HttpRequest, JsonResponse  # noqa: E402
from django.middleware.csrf import get_token  # noqa: E402
from django.urls import path  # noqa: E402
from twisted.internet import reactor  # noqa: E402


def page(request: HttpRequest) -> JsonResponse:
    """To be POSTed too, with the token that it told before: Django then compares Origin with Host."""
    return JsonResponse(
        {
            "host": request.get_host(),
            "client": request.META["REMOTE_ADDR"],
            "method": request.method,
            "posted": request.POST.get("text"),
            "token": get_token(request),
        }
    )


class Echo(AsyncWebsocketConsumer):
    async def connect(self) -> None:
        await self.accept("chat" if "chat" in self.scope["subprotocols"] else None)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if text_data == "leave":
            await self.close(4001)
        else:
            await self.send(text_data, bytes_data)

    async def disconnect(self, code: int) -> None:
        ended(code, None)


urlpatterns = [path("page", page)]
application: Any = ProtocolTypeRouter(
    {
        "http": get_asgi_application(),
        "websocket": AllowedHostsOriginValidator(URLRouter([path("echo", Echo.as_asgi())])),
    }
)
server = Server(
    application,
    ["tcp:port=0:interface=127.0.0.1"],
    proxy_forwarded_address_header="X-Forwarded-For",
    websocket_max_message_size=options.largest,
    websocket_max_frame_size=options.largest,
)
reactor.callWhenRunning(lambda: listening(server.listening_addresses[0][1]))
server.run()
sys.exit()
