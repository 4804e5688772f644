"""How the commands talk to a running balancer: ``find``, then ``Client.get`` and ``Client.post``.

The standard library only, so that ``pybalancer status`` starts fast.
"""

import http.client
import json
import os
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from pybalancer.admin.address import TcpAddress, UnixAddress, default, parse
from pybalancer.errors import AdminError

ANSWER_LIMIT = 64 * 1024 * 1024
"""Bytes of an answer that are read; a status of ten thousand backends is a tenth of it."""


class Refused(AdminError):
    """The balancer answered, with an error: ``status`` is HTTP's, ``content`` what it said."""

    def __init__(self, status: int, content: dict[str, Any]) -> None:
        super().__init__(str(content.get("error") or f"the balancer answered {status}"))
        self.status = status
        self.content = content


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, address: UnixAddress, timeout: float) -> None:
        super().__init__("pybalancer", timeout=timeout)
        self._address = address

    def connect(self) -> None:
        """Connect to the socket in the file system."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._address.path))


class Client:
    """One running balancer, by its admin address. A connection per request; ``timeout`` in seconds."""

    def __init__(self, address: str, *, token: str | None = None, timeout: float = 35.0) -> None:
        self.address = parse(address)
        self._token = token
        self._timeout = timeout

    def get(self, path: str, /, **query: str | Sequence[str] | None) -> dict[str, Any]:
        """The JSON at ``path``; a parameter that is a list is given once for each of its items.

        Raises ``Refused`` for an error answer, AdminError where nobody answers.
        """
        given = {key: value for key, value in query.items() if value}
        return self._ask("GET", f"{path}?{urlencode(given, doseq=True)}" if given else path)

    def post(self, path: str, /, body: Any = None, **query: str | float | None) -> dict[str, Any]:
        """POST with parameters, and with ``body`` as JSON unless it is None; otherwise as ``get``."""
        given = {key: _written(value) for key, value in query.items()}
        text = urlencode({key: value for key, value in given.items() if value})
        content = None if body is None else json.dumps(body).encode()
        return self._ask("POST", f"{path}?{text}" if text else path, content)

    def _ask(self, method: str, target: str, body: bytes | None = None) -> dict[str, Any]:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        connection = self._connection()
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            body = response.read(ANSWER_LIMIT)
            content = json.loads(body)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise AdminError(
                f"no pybalancer answers at {self.address}: is it running? "
                "Start it with `pybalancer serve`, or say where it is with --admin"
            ) from error
        except PermissionError as error:
            raise AdminError(
                f"{self.address} may be opened only by the user that runs pybalancer (try sudo)"
            ) from error
        except TimeoutError as error:
            raise AdminError(
                f"the pybalancer at {self.address} did not answer within {self._timeout:g} s"
            ) from error
        except ConnectionError as error:
            raise AdminError(
                f"{self.address} broke off without an answer: that pybalancer may just have ended, "
                "or it is none"
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise AdminError(f"what answers at {self.address} is no pybalancer: {error}") from error
        finally:
            connection.close()
        if not isinstance(content, dict):
            raise AdminError(f"what answers at {self.address} is no pybalancer")
        if response.status == 401:
            raise Refused(401, {"error": "the token is missing or wrong: set PYBALANCER_ADMIN_TOKEN"})
        if response.status >= 400 and "ready" not in content:
            raise Refused(response.status, content)
        return content

    def _connection(self) -> http.client.HTTPConnection:
        if isinstance(self.address, TcpAddress):
            return http.client.HTTPConnection(self.address.host, self.address.port, timeout=self._timeout)
        return _UnixConnection(self.address, self._timeout)


def _written(value: str | float | None) -> str:
    """As the admin interface reads it; nothing for what is not given."""
    if isinstance(value, bool):
        return "1" if value else ""
    if isinstance(value, float):
        return f"{value:.6f}"
    return "" if value is None else str(value)


def find(admin: str | None = None, config: str | None = None, *, timeout: float = 35.0) -> Client:
    """The running balancer: at ``admin``, else PYBALANCER_ADMIN, else as the file ``config`` says, else
    at the default socket. The token of a TCP address comes from PYBALANCER_ADMIN_TOKEN. ``timeout`` is of
    each request.

    Raises AdminError for an address that is none, ConfigError for a file that is invalid.
    """
    address = admin or os.environ.get("PYBALANCER_ADMIN")
    if address is None and config is not None:
        from pybalancer.config.load import load_file

        address = load_file(config).balancer.admin
    if address == "none":
        raise AdminError("the admin interface is switched off (none)")
    token = os.environ.get("PYBALANCER_ADMIN_TOKEN")
    return Client(address or default(), token=token, timeout=timeout)
