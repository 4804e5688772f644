"""The contestants: how each is started with one worker in front of one backend, and what it has used."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "target" / "release"


@dataclass
class Proxy:
    """A running proxy: its name, its processes, where it listens."""

    name: str
    process: subprocess.Popen[str]
    address: str

    def pids(self) -> list[int]:
        """The process and its children."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += [int(child) for child in task.read_text().split()]
        return found

    def cpu_ns(self) -> int:
        """Time on a core of all its threads so far."""
        total = 0
        for pid in self.pids():
            for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with contextlib.suppress(OSError):
                    total += int(stat.read_text().split()[0])
        return total

    def memory(self) -> int:
        """Bytes of anonymous memory, shared parts by proportion."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss_Anon:"):
                    total += int(line.split()[1]) * 1024
        return total


def first_line(command: list[str], **options: object) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    return process, process.stdout.readline().strip()


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def wait_open(address: str) -> None:
    import socket

    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection((host, int(port)), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def start_floor(backend: str, _folder: Path) -> Proxy:
    process, at = first_line([str(PROGRAMS / "floor"), "--listen", "127.0.0.1:0", "--to", backend])
    return Proxy("floor", process, at)


PYBALANCER = """
[balancer]
workers = 1
admin = "none"
[log]
connections = false
[[listeners]]
name = "bench"
bind = "{at}"
mode = "{mode}"
pool = "bench"
[[pools.bench.backends]]
name = "one"
address = "{backend}"
"""


def start_pybalancer(backend: str, folder: Path, mode: str = "tcp") -> Proxy:
    at = f"127.0.0.1:{free_port()}"
    config = folder / f"pybalancer-{mode}.toml"
    config.write_text(PYBALANCER.format(at=at, mode=mode, backend=backend))
    command = [sys.executable, "-m", "pybalancer", "serve", str(config)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    wait_open(at)
    return Proxy("pybalancer", process, at)


def start_pybalancer_websocket(backend: str, folder: Path) -> Proxy:
    return start_pybalancer(backend, folder, "websocket")


def start_haproxy(backend: str, folder: Path, *, splice: bool = False, mode: str = "tcp") -> Proxy:
    at = f"127.0.0.1:{free_port()}"
    config = folder / f"haproxy-{mode}-{splice}.cfg"
    config.write_text(
        f"""global
  nbthread 1
  maxconn 9000
  maxpipes 200
defaults
  mode {mode}
  timeout tunnel 1h
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  {"option splice-auto" if splice else ""}
listen all
  bind {at} backlog 4096
  server one {backend}
"""
    )
    process = subprocess.Popen(
        ["haproxy", "-db", "-f", str(config)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, text=True
    )
    wait_open(at)
    return Proxy("haproxy-splice" if splice else "haproxy", process, at)


def start_haproxy_websocket(backend: str, folder: Path) -> Proxy:
    return start_haproxy(backend, folder, mode="http")


def start_haproxy_websocket_splice(backend: str, folder: Path) -> Proxy:
    return start_haproxy(backend, folder, mode="http", splice=True)


def start_haproxy_splice(backend: str, folder: Path) -> Proxy:
    return start_haproxy(backend, folder, splice=True)


NGINX_STREAM = """stream {{
  server {{ listen {at} backlog=4096 so_keepalive=on; proxy_pass {backend}; proxy_timeout 1h;
           proxy_socket_keepalive on; tcp_nodelay on; }}
}}"""
NGINX_HTTP = """http {{
  access_log off;
  map $http_upgrade $connection_upgrade {{ default upgrade; "" close; }}
  server {{
    listen {at} backlog=4096 so_keepalive=on;
    location / {{
      proxy_pass http://{backend}; proxy_http_version 1.1; proxy_read_timeout 1h; proxy_send_timeout 1h;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }}
  }}
}}"""


def start_nginx(backend: str, folder: Path, template: str = NGINX_STREAM) -> Proxy:
    at = f"127.0.0.1:{free_port()}"
    module = next(Path("/usr/lib/nginx/modules").glob("ngx_stream_module.so"), None)
    config = folder / "nginx.conf"
    config.write_text(
        f"""{f"load_module {module};" if module else ""}
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 19000; }}
{template.format(at=at, backend=backend)}
"""
    )
    process = subprocess.Popen(["nginx", "-c", str(config)], stderr=subprocess.DEVNULL, text=True)
    wait_open(at)
    return Proxy("nginx", process, at)


def start_nginx_websocket(backend: str, folder: Path) -> Proxy:
    return start_nginx(backend, folder, NGINX_HTTP)


Start = Callable[[str, Path], Proxy]

CONTESTANTS: dict[str, tuple[list[Start], list[Start], list[Start]]] = {
    "tcp": ([start_floor, start_pybalancer], [start_haproxy, start_haproxy_splice], [start_nginx]),
    "websocket": (
        [start_floor, start_pybalancer_websocket],
        [start_haproxy_websocket, start_haproxy_websocket_splice],
        [start_nginx_websocket],
    ),
}


def contestants(mode: str) -> list[Start]:
    ours, haproxy, nginx = CONTESTANTS[mode]
    found = [*ours]
    missing = []
    if shutil.which("haproxy"):
        found += haproxy
    else:
        missing.append("haproxy")
    if shutil.which("nginx"):
        found += nginx
    else:
        missing += ["nginx-light", "libnginx-mod-stream"]
    if missing:
        print(f"not installed, left out: apt-get install {' '.join(missing)}", file=sys.stderr)
    return found
