"""One serving process for all tests of bad input: what one of them breaks, the next one notices."""

from collections.abc import Iterator

import pytest

from .site import Site
from .site import site as running

CONFIG = """
[balancer]
admin = "none"
[log]
connections = false
[[listeners]]
name = "main"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "main"
[[listeners.routes]]
host = "beat.test"
pool = "beat"
[[listeners.routes]]
host = "late.test"
pool = "late"
[[listeners.routes]]
host = "dead.test"
pool = "dead"
[[listeners.routes]]
host = "origins.test"
pool = "main"
origins = ["https://good.test"]
[[listeners]]
name = "trusting"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "main"
trusted = ["127.0.0.1"]
[[listeners]]
name = "announced"
bind = "127.0.0.1:0"
mode = "websocket"
pool = "main"
accept_proxy = "any"
trusted = ["127.0.0.1"]
[pools.main]
[[pools.main.backends]]
name = "main-1"
address = "@main@"
[pools.beat]
[[pools.beat.backends]]
name = "beat-1"
address = "@beat@"
[pools.late]
response_timeout = "0.3s"
body_timeout = "0.3s"
[[pools.late.backends]]
name = "late-1"
address = "@main@"
[pools.dead]
[[pools.dead.backends]]
name = "dead-1"
address = "127.0.0.1:1"
"""


@pytest.fixture(scope="package")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running(tmp_path_factory.mktemp("web"), CONFIG, "main", "beat") as site:
        yield site


@pytest.fixture
def site(web: Site) -> Iterator[Site]:
    web.recorder.forget()
    yield web
    assert web.errors() == []
