"""The client over TLS: directory and node have a certificate that only the test's own context believes."""

from __future__ import annotations

import datetime
import ipaddress
import math
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

from pybalancer.client import Retry, attempts, connect
from pybalancer.client.lookup import Reply, look

from .directories import directory, found
from .net import PATIENCE

SOON = Retry(base_ms=50)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with key and certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture
def server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def believing(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate)


@asynccontextmanager
async def node(context: ssl.SSLContext) -> AsyncIterator[str]:
    async def echo(request: WebSocketRequest) -> None:
        connection = await request.accept()
        with suppress(ConnectionClosed):
            while True:
                await connection.send_message(await connection.get_message())

    async with trio.open_nursery() as nursery:
        running = await nursery.start(serve_websocket, echo, "127.0.0.1", 0, context)
        yield f"wss://127.0.0.1:{running.port}/"
        nursery.cancel_scope.cancel()


async def test_directory_and_node_over_tls(server_side: ssl.SSLContext, believing: ssl.SSLContext) -> None:
    async with node(server_side) as address:
        with directory(lambda: found(address), server_side) as running:
            async with connect(running.url, context=believing) as client:
                await client.send("hello")
                assert (await client.receive(), client.url) == ("hello", address)


def test_a_directory_that_nobody_vouches_for_is_none(
    server_side: ssl.SSLContext, believing: ssl.SSLContext
) -> None:
    with directory(lambda: found("wss://node.test/"), server_side) as running:
        assert look(running.url, PATIENCE, {}, None) == Reply(0)
        assert look(running.url, PATIENCE, {}, believing).status == 200


async def test_a_node_that_nobody_vouches_for_is_not_talked_to(
    server_side: ssl.SSLContext, believing: ssl.SSLContext
) -> None:
    """It counts as one that did not open: there may be another."""
    async with node(server_side) as address:
        other = address.replace("127.0.0.1", "localhost")
        with directory(lambda: found(other, address), server_side) as running:
            async with connect(running.url, context=believing, retry=SOON, timeout=math.inf) as client:
                await client.send("hello")
                assert (await client.receive(), client.url) == ("hello", address)
            assert len(running.asked) == 2


def test_no_address_without_encryption_is_taken(
    server_side: ssl.SSLContext, believing: ssl.SSLContext
) -> None:
    with directory(lambda: found("ws://node.test/", fallback="ws://node.test/"), server_side) as running:
        steps = attempts(running.url, context=believing, chance=lambda: 1.0)
        assert next(steps) == (None, 0.5)
        assert next(steps) == (None, 1.0)
