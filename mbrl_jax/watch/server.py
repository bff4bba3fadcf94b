"""A small web server for runs: a few fixed paths, read only, for this machine by default."""

import functools
import ipaddress
import re
import socket
import sys
import urllib.parse
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, NamedTuple

from mbrl_jax.errors import ConfigError
from mbrl_jax.watch.overview import Overview
from mbrl_jax.watch.view import View

# Everything comes from here, and nothing inline is run or styled.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/watch.css": ("watch.css", "text/css; charset=utf-8"),
    "/watch.js": ("watch.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
SHARED = {path: STATIC[path] for path in ("/watch.css", "/charts.js", "/icon.svg")}
OVERVIEW = SHARED | {
    "/": ("overview.html", "text/html; charset=utf-8"),
    "/overview.js": ("overview.js", "text/javascript; charset=utf-8"),
}
DATA, PICTURE, SETTINGS = "/data.json", "/open_loop.png", "/settings.json"
RUNS = "/runs.json"
_RUN = re.compile(r"/run/(0|[1-9][0-9]{0,5})(/[a-z_.]*)")  # a number, and a path of its page
JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
METHODS = ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT")  # refused


class Reply(NamedTuple):
    """What a path gives."""

    status: int
    kind: str
    body: bytes
    tag: str = ""


class Server(ThreadingHTTPServer):
    """Answers for one run, or for a folder of them; `url` is where."""

    daemon_threads = True

    def __init__(self, view: View | Overview, host: str, port: int):
        """Listen. Raises ConfigError where that is not possible."""
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError, OverflowError) as error:
            raise ConfigError(f"--host={host} is no address of this machine ({error})") from error
        self.address_family = family
        self.is_local = is_loopback(str(address[0]))
        self.replies = _replies(view)
        try:
            super().__init__((str(address[0]), int(address[1])), Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"--host={host} --port={port} cannot be listened on ({error}); choose another "
                "port, or 0 for any that is free"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_port}/"

    def server_bind(self):
        """Bind without asking a name server what this machine is called."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.socket.getsockname()[:2]

    def handle_error(self, request, client_address):
        """A browser that goes away in the middle is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of the fixed paths."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a connection may idle

    def do_GET(self) -> None:
        """Answer."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self._answer()

    def refuse(self) -> None:
        """Nothing here changes anything."""
        self._send(Reply(405, TEXT, b"GET and HEAD only\n"), {"Allow": "GET, HEAD"})

    def send_error(self, code, message=None, explain=None):
        """What the base class refuses, without its page."""
        self._send(Reply(int(code), TEXT, b"refused\n"), {})

    def version_string(self) -> str:
        """No versions of Python or of anything else."""
        return "mbrl_jax"

    def log_message(self, *arguments: Any) -> None:
        """Nothing: a page asks every few seconds."""

    def _answer(self) -> None:
        if self.server.is_local and not names_loopback(self.headers.get("Host", "")):
            # A name that another site has pointed to this machine: its page may read nothing here.
            self._send(Reply(421, TEXT, b"this server is for localhost\n"), {})
            return
        found = self.server.replies(self.path.partition("?")[0])
        if found.tag and self.headers.get("If-None-Match") == f'"{found.tag}"':
            found = found._replace(status=304, body=b"")
        self._send(found, {"ETag": f'"{found.tag}"'} if found.tag else {})

    def _send(self, found: Reply, more: dict[str, str]) -> None:
        has_body = {"Content-Length", "Transfer-Encoding"} & set(getattr(self, "headers", ()) or ())
        if found.status >= 400 or has_body:  # what follows on the connection is no request of ours
            self.close_connection = True
            more = {**more, "Connection": "close"}
        self.send_response(found.status)
        for name, value in {**HEADERS, **more}.items():
            self.send_header(name, value)
        if found.status != 304:
            self.send_header("Content-Type", found.kind)
            self.send_header("Content-Length", str(len(found.body)))
        self.end_headers()
        if getattr(self, "command", "") != "HEAD":
            self.wfile.write(found.body)


for _method in METHODS:
    setattr(Handler, f"do_{_method}", Handler.refuse)


def _replies(view: View | Overview) -> Callable[[str], Reply]:
    """What answers to paths."""
    page = _static(STATIC)
    if isinstance(view, Overview):
        return functools.partial(reply_of_many, view, _static(OVERVIEW), page)
    return functools.partial(reply, view, page)


def _static(files: Mapping[str, tuple[str, str]]) -> dict[str, Reply]:
    """The files of a page: no path of a request ever reaches the disk."""
    folder = resources.files("mbrl_jax.watch") / "static"
    read = {path: (folder / name).read_bytes() for path, (name, _) in files.items()}
    return {path: Reply(200, kind, read[path]) for path, (_, kind) in files.items()}


def reply(view: View, static: Mapping[str, Reply], path: str) -> Reply:
    """What a path gives: a file of the page, the data, the picture, or 404."""
    if path in static:
        return static[path]
    try:
        if path == DATA:
            return Reply(200, JSON, *view.body())
        if path == SETTINGS:
            return Reply(200, JSON, *view.settings())
        if path == PICTURE and (picture := view.picture()) is not None:
            return Reply(200, "image/png", *picture)
    except OSError:  # a file system that is away: the page says so and asks again
        return Reply(503, TEXT, b"the workdir cannot be read\n")
    return Reply(404, TEXT, b"there is no such page\n")


def reply_of_many(
    overview: Overview, static: Mapping[str, Reply], page: Mapping[str, Reply], path: str
) -> Reply:
    """What a path gives: a file of the overview, its data, or what lies under /run/NUMBER/."""
    if path in static:
        return static[path]
    try:
        if path == RUNS:
            return Reply(200, JSON, *overview.body())
        found = _RUN.fullmatch(path)
        view = overview.view(int(found[1])) if found else None
    except OSError:
        return Reply(503, TEXT, b"the folder cannot be read\n")
    if found is None or view is None:
        return Reply(404, TEXT, b"there is no such page\n")
    return reply(view, page, found[2])


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches an IP address."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def names_loopback(host: str) -> bool:
    """Whether a Host header names this machine for itself: localhost or a loopback address."""
    try:
        name = urllib.parse.urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if any(c in host for c in "/@?#\\ \t"):
        return False
    return name == "localhost" or is_loopback(name)


def serve(server: Server, say: Callable[[str], None]) -> None:
    """Answer until Ctrl-C."""
    if not server.is_local:
        say("warning: whoever reaches this machine can see the page; --host=127.0.0.1 is for you")
    say(f"watch at {server.url} (Ctrl-C ends)")
    try:
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        say("")
    finally:
        server.server_close()
