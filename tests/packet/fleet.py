"""``pybalancer serve`` on the machines of a site: directors and agents, one file for all."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pybalancer.admin.client import Client
from pybalancer.packet.forwarder import pin_name
from tests.wire.serving import Serving, environment_in

from .topology import PORT, VIP, VIP6, Machine, Site

PINS = Path("/sys/fs/bpf")


@dataclass
class Plan:
    """What the file says."""

    forward: str = "l2"
    backends: list[Machine] = field(default_factory=list)
    weights: dict[str, int] = field(default_factory=dict)
    engine: str = "xdp"
    health: str = ""
    trusted: tuple[str, ...] = ()
    """Whose outer packets backends take, besides each other's."""
    six: bool = False
    """Backends are known by their IPv6 addresses."""
    vips: tuple[str, ...] = (VIP, f"[{VIP6}]")
    """Checks ask the first."""
    xdp: str = "native"
    interfaces: tuple[str, ...] = ("eth0",)
    role: str = ""
    table_size: int = 65537
    more: str = ""
    """Other sections."""
    listener: str = "vip"

    def text(self) -> str:
        named = ", ".join(f'"{name}"' for name in self.interfaces)
        lines = [self.more, f'[packet]\ninterfaces = [{named}]\nforward = "{self.forward}"']
        lines.append(f'engine = "{self.engine}"')
        lines += [f'xdp = "{self.xdp}"'] if self.engine == "xdp" else []
        lines += [f'role = "{self.role}"'] if self.role else []
        lines += [f"directors = {json.dumps(self.trusted)}"] if self.trusted else []
        for vip in self.vips:
            name = self.listener + ("6" if vip.startswith("[") else "")
            lines.append(
                f'[[listeners]]\nname = "{name}"\nmode = "packet"\nbind = "{vip}:{PORT}"\npool = "chat"'
            )
        lines.append(f"[pools.chat]\ntable_size = {self.table_size}")
        for machine in self.backends:
            address = f"[{machine.address6}]" if self.six else machine.address
            lines.append(f'[[pools.chat.backends]]\nname = "{machine.name}"\naddress = "{address}:{PORT}"')
            lines.append(f"weight = {self.weights.get(machine.name, 1)}")
        if self.health:
            lines.append(f"[pools.chat.health]\n{self.health}")
        return "\n".join(lines) + "\n"


class Serve(Serving):
    """One process, on its machine."""

    def __init__(self, machine: Machine, folder: Path, plan: Plan, **environment: str) -> None:
        self.machine = machine
        self.folder = folder / machine.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "pybalancer.toml"
        self.file.write_text(plan.text())
        with machine.space.inside():
            super().__init__({**environment_in(self.folder), **environment}, self.file)

    def ready(self) -> Serve:
        self.line("admin interface at")
        return self

    def ask(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        with self.machine.space.inside():
            return super().ask(*arguments)

    @property
    def client(self) -> Client:
        """Of its admin socket, which is a file and so reached from any namespace."""
        return Client(f"unix:{self.folder / 'run' / 'admin.sock'}")

    def write(self, plan: Plan) -> None:
        """Another file, and a reload of it that is over when this returns."""
        self.file.write_text(plan.text())
        self.client.post("/reload")

    def packet(self) -> dict[str, Any]:
        """What its status says of mode packet."""
        packet: dict[str, Any] = self.client.get("/status")["packet"]
        return packet

    def backends(self) -> dict[str, dict[str, Any]]:
        """What its status says of the backends of its pool, by name."""
        (pool,) = self.client.get("/status")["pools"]
        return {one["name"]: one for one in pool["backends"]}

    def are(self, state: str) -> bool:
        """Whether all backends are ``up``, or ``down``."""
        return {one["state"] for one in self.backends().values()} == {state}

    def forget(self) -> None:
        """Remove what a process that was killed has left in the kernel, as the end of its machine would."""
        with self.machine.space.inside():
            for role in ("director", "agent"):
                shutil.rmtree(PINS / pin_name(role), ignore_errors=True)

    def close(self) -> None:
        super().close()
        self.forget()

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()


class Fleet:
    """Directors and agents of a site."""

    def __init__(self, site: Site, folder: Path, plan: Plan, *, secrets: Sequence[str] = ()) -> None:
        self.site, self.folder, self.plan = site, folder, plan
        self.directors: dict[str, Serve] = {}
        self.agents: dict[str, Serve] = {}
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for number, machine in enumerate(site.directors):
                given = {"PYBALANCER_SECRET": secrets[number]} if secrets else {}
                self.directors[machine.name] = Serve(machine, folder, plan, **given)
            for machine in plan.backends:
                self.start_agent(machine, plan)
            for serving in self.all:
                serving.ready()
            undo.pop_all()

    @property
    def all(self) -> list[Serve]:
        return [*self.directors.values(), *self.agents.values()]

    def start_agent(self, machine: Machine, plan: Plan) -> Serve:
        serving = Serve(machine, self.folder, plan, PYBALANCER_PACKET_ROLE="backend")
        self.agents[machine.name] = serving
        return serving

    def apply(self, plan: Plan, among: Sequence[Serve] | None = None) -> None:
        """Reload all, or some, one after the other."""
        self.plan = plan
        for serving in self.all if among is None else among:
            serving.write(plan)

    def crash(self, serving: Serve) -> None:
        """The process dies, and its machine does not."""
        serving.process.kill()
        Serving.close(serving)

    def start_again(self, serving: Serve) -> Serve:
        """After that, or after its end."""
        agent = serving.machine.name in self.agents
        role = {"PYBALANCER_PACKET_ROLE": "backend"} if agent else {}
        again = Serve(serving.machine, self.folder, self.plan, **role)
        (self.agents if agent else self.directors)[serving.machine.name] = again
        return again.ready()

    def kill(self, director: str) -> None:
        """The machine loses power; a moment later the router has noticed."""
        serving = self.directors.pop(director)
        serving.machine.off()
        serving.process.kill()
        serving.close()
        living = [one.machine for one in self.directors.values()]
        self.site.route_to(living)

    def kill_backend(self, name: str) -> None:
        """The same for a backend's. Nobody is told."""
        victim = self.agents.pop(name)
        victim.machine.off()
        victim.process.kill()
        victim.close()

    def close(self) -> None:
        for serving in self.all:
            serving.signal(signal.SIGTERM)
        for serving in self.all:
            with contextlib.suppress(subprocess.TimeoutExpired):
                serving.process.wait(10)
            serving.close()


@contextlib.contextmanager
def fleet(site: Site, folder: Path, plan: Plan, **options: Any) -> Iterator[Fleet]:
    made = Fleet(site, folder, plan, **options)
    try:
        yield made
    finally:
        made.close()
