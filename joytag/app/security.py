"""The guard before all routes: who may ask, how much at once, and what a browser may do with the answers."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import secrets
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from urllib.parse import parse_qs

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = "127.0.0.1"
COOKIE = "joytag_token"
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors {ancestors}"
)
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
MOST_CLIENTS = 10_000  # whose rates are remembered


@dataclass(frozen=True)
class Limits:
    """How much the service takes at once."""

    form_bytes: int = 64 * 2**20  # of a request with files
    json_bytes: int = 2**20  # of any other
    files: int = 64  # in a request
    uploads: int = 16  # that are read or computed at the same time; more wait
    uploads_of_client: int = 256
    patience: float = 30  # seconds that a request waits for its turn, and that a slow upload may always take
    slowest: int = 50_000  # bytes a second, below which an upload is ended after `patience`
    images_per_minute: float | None = None  # of a client


LIMITS = Limits()
PUBLIC_LIMITS = Limits(form_bytes=16 * 2**20, files=16, uploads_of_client=4, images_per_minute=120)


@dataclass(frozen=True)
class Access:
    """Who may use the service.

    Bound to a loopback address it answers this machine; bound to another `host` it needs a `token`, unless it is
    `public`: then it answers everyone, and must serve nothing that is private. Raises ValueError without the token.
    """

    host: str = LOOPBACK
    token: str = ""
    public: bool = False

    def __post_init__(self) -> None:
        if not self.public and not self.token and not is_loopback(self.host):
            raise ValueError(f"host {self.host}: other machines can reach it, so it needs a token")

    def names_this(self, hostname: str) -> bool:
        """Whether a name in the Host header is this service's, so that no other site's name leads here.

        In DNS rebinding, a page from `evil.example` lets its name point here, to be of the same origin. It cannot do so
        with a loopback name, with an address or with this machine's name.
        """
        if is_loopback(hostname) or self.host.lower() == hostname:
            return True
        own = socket.gethostname().lower()
        return not is_loopback(self.host) and (_address(hostname) is not None or hostname in (own, f"{own}.local"))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host: a name or an address, perhaps in brackets."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


LOCAL = Access()


class RateLimit:
    """A number of images a minute for each client; one that saved up may use those of a minute at once."""

    def __init__(self, per_minute: float, now: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self._now = per_minute, now
        self._due: OrderedDict[str, float] = OrderedDict()  # by client: until when its images use up its rate

    def take(self, client: str, images: int = 1) -> None:
        """Count images of a client. Raises HTTPException when there are more than it has left."""
        now = self._now()
        before = max(now, self._due.pop(client, now))
        after = before + images * 60 / self.per_minute
        wait = after - now - 60
        self._due[client] = before if wait > 0 else after
        if len(self._due) > MOST_CLIENTS:
            self._due.popitem(last=False)
        if wait > 0:
            retry = {"Retry-After": str(max(1, round(wait)))}
            raise HTTPException(429, f"more than {self.per_minute:g} images a minute", retry)


class Guard:
    """ASGI middleware that refuses what a browser must not do for a foreign page, and bounds what is done at once."""

    def __init__(self, app: ASGIApp, access: Access, limits: Limits, rate: RateLimit | None) -> None:
        self.app, self.access, self.limits, self.rate = app, access, limits, rate
        ancestors = "*" if access.public else "'none'"  # a public demo may be framed: it has nothing to click away
        self.headers = {**HEADERS, "Content-Security-Policy": CONTENT_POLICY.format(ancestors=ancestors)}
        self._turns = asyncio.Semaphore(limits.uploads)
        self._uploads: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            if not self.access.public:
                self._check(scope)
            headers, limits = Headers(scope=scope), self.limits
            is_form = headers.get("content-type", "").lower().startswith("multipart/")
            most = limits.form_bytes if is_form else limits.json_bytes
            if int(headers.get("content-length", 0)) > most:
                raise HTTPException(413, f"more than {most:,} bytes")
            async with self._turn(client_of(scope)) if is_form else nullcontext():
                await self.app(scope, self._bounded(receive, most), send_with_headers)
        except HTTPException as refusal:
            response = JSONResponse({"detail": refusal.detail}, refusal.status_code, refusal.headers)
            await response(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> None:
        """Raise HTTPException for a foreign name, a foreign page, or without the token."""
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "").lower()
        if not (matched := _HOST.fullmatch(host)) or not self.access.names_this(matched[1]):
            raise HTTPException(421, "this service has another name; use the address that it printed when it started")
        if headers.get("origin", f"http://{host}").lower().partition("://")[2] != host:
            raise HTTPException(403, "a page of another origin may not use this service")
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode")
        is_link = mode == "navigate" and headers.get("sec-fetch-dest") == "document" and scope["method"] == "GET"
        if site not in ("none", "same-origin") and not (is_link and not path.startswith("/api")):
            raise HTTPException(403, "a page of another site may not use this service")
        if self.access.token:
            self._check_token(headers, scope)

    def _check_token(self, headers: Headers, scope: Scope) -> None:
        """Raise HTTPException without the token; one in the page's address becomes a cookie, and leaves the address."""
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and self._is_token(given):
            response = Response()
            response.set_cookie(COOKIE, given, httponly=True, samesite="strict")
            raise HTTPException(303, headers={"Location": "/", "Set-Cookie": response.headers["set-cookie"]})
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        if not self._is_token(bearer if scheme.lower() == "bearer" else cookie):
            reason = "send the token as Authorization: Bearer TOKEN, or open the address that was printed at the start"
            raise HTTPException(401, reason, {"WWW-Authenticate": "Bearer"})

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode("latin-1", "replace"), self.access.token.encode())

    @asynccontextmanager
    async def _turn(self, client: str) -> AsyncIterator[None]:
        """Wait until one of the limited number of uploads may begin. Raises HTTPException when that takes too long."""
        if self.rate:
            self.rate.take(client)
        if self._uploads[client] >= self.limits.uploads_of_client:
            raise HTTPException(429, "too many uploads at the same time", {"Retry-After": "1"})
        self._uploads[client] += 1
        try:
            async with asyncio.timeout(self.limits.patience):
                await self._turns.acquire()
        except TimeoutError:
            raise HTTPException(503, "busy; try again", {"Retry-After": "5"}) from None
        else:
            try:
                yield
            finally:
                self._turns.release()
        finally:
            self._uploads -= Counter([client])  # and forget who has none

    def _bounded(self, receive: Receive, most: int) -> Receive:
        """Return `receive` with limits on the bytes of a body and on the time that it takes."""
        start, received, is_whole = time.monotonic(), 0, False

        async def receive_bounded() -> Message:
            nonlocal received, is_whole
            if is_whole:  # what follows is only the client's end
                return await receive()
            left = start + self.limits.patience + received / self.limits.slowest - time.monotonic()
            try:
                async with asyncio.timeout(left):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the upload is too slow") from None
            received += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if received > most:
                raise HTTPException(413, f"more than {most:,} bytes")
            return message

        return receive_bounded


def client_of(scope: Scope) -> str:
    """Return the address of a client; of IPv6 the network of 64 bits, all of which one client may use."""
    host = (scope.get("client") or ("",))[0]
    is_v6 = isinstance(_address(host), ipaddress.IPv6Address)
    return str(ipaddress.ip_network(f"{host}/64", strict=False)) if is_v6 else host
