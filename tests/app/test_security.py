"""Access to the service: Host, Origin, tokens, rates, and security headers."""

import asyncio
import re

import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient

from joytag.app.security import COOKIE, Access, Guard, Limits, RateLimit, client_of
from joytag.cli.app import address, choose_token, listen, parse

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def shared(open_app) -> TestClient:
    """A client of an app that other machines can reach."""
    return open_app(Access("0.0.0.0", TOKEN))


@pytest.fixture(scope="module")
def public(open_app) -> TestClient:
    return open_app(Access("0.0.0.0", public=True))


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:8765", "localhost", "[::1]:8765", "127.0.0.1:9000"])
def test_loopback_names_are_answered(client, host):
    assert client.get("/api/health", headers={"host": host}).status_code == 200


FOREIGN_HOSTS = ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.evil.example", "192.168.0.7"]
BROKEN_HOSTS = ["0.0.0.0:8765", "evil.example@127.0.0.1", "127.0.0.1@evil.example", "localhost:x", "localhost/", "[::1"]


@pytest.mark.parametrize("host", [*FOREIGN_HOSTS, *BROKEN_HOSTS, ""])
@pytest.mark.parametrize("path", ["/", "/api/health", "/api/openapi.json"])
def test_other_names_are_refused(client, host, path):
    """A page of `evil.example` whose name points here would be of the same origin."""
    answer = client.get(path, headers={"host": host})
    assert answer.status_code == 421
    assert "api/" not in answer.text


FOREIGN_ORIGINS = [
    "http://evil.example",
    "https://evil.example:8765",
    "null",
    "http://127.0.0.1:3000",
    "http://localhost:8765",  # this machine, but not this page
    "http://127.0.0.1",
    "http://127.0.0.1:8765.evil.example",
    "http://evil.example@127.0.0.1:8765",
    "http://[",  # no address
    "",
]


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_posts_of_other_pages_are_refused(client, pictures, origin):
    for path, name in (("/api/tag", "files"), ("/api/evidence", "file")):
        answer = client.post(path, files={name: pictures[0]}, data={"tag": "tag_1"}, headers={"origin": origin})
        assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_the_apps_own_page_is_answered(client, pictures):
    headers = {"origin": "http://127.0.0.1:8765", "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"}
    assert client.post("/api/tag", files={"files": pictures[0]}, headers=headers).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site", "anything"])
def test_images_scripts_frames_and_fetches_of_other_sites_are_refused(client, site):
    """Also without an Origin, as for images, whose loading would tell whether a file is there."""
    for path in ("/api/health", "/api/docs", "/"):
        for mode, target in (("no-cors", "image"), ("no-cors", "script"), ("cors", "empty"), ("navigate", "iframe")):
            headers = {"sec-fetch-site": site, "sec-fetch-mode": mode, "sec-fetch-dest": target}
            assert client.get(path, headers=headers).status_code == 403


def test_a_link_elsewhere_opens_the_page_but_nothing_of_the_api(client):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert client.get("/", headers=headers).status_code == 200
    assert client.get("/api/tags", headers=headers).status_code == 403
    assert client.post("/", headers=headers).status_code == 403


def test_preflights_allow_nothing(client):
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answer = client.options("/api/tag", headers=headers)
    assert answer.status_code == 403
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/", "/api/health", "/api/docs", "/api/none", "/none"])
def test_answers_forbid_browsers_what_the_page_does_not_need(client, path):
    headers = client.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"


def test_refusals_have_the_same_headers(client):
    assert client.get("/", headers={"host": "evil.example"}).headers["content-security-policy"]


def test_an_address_that_others_reach_needs_a_token():
    for host in ("0.0.0.0", "::", "192.168.0.7", "box", "example.org"):
        with pytest.raises(ValueError, match="needs a token"):
            Access(host)
        assert Access(host, public=True)
        options = parse(["--model", "x", "--host", host])
        assert len(choose_token(options)) >= 32
        assert choose_token(options) != choose_token(options)
    for host in ("127.0.0.1", "localhost", "::1", "127.8.9.1"):
        assert Access(host).token == choose_token(parse(["--model", "x", "--host", host])) == ""


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": TOKEN},
        {"authorization": f"Basic {TOKEN}"},
        {"cookie": f"{COOKIE}=wrong"},
        {"cookie": f"other={TOKEN}"},
        {"authorization": "Bearer ü€"},
        {"authorization": f"Bearer {TOKEN} "[:-2]},
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/", "/app.js", "/api/health", "/api/openapi.json", "/api/docs"])
def test_without_the_token_nothing_is_answered(shared, headers, path):
    encoded = {name: value.encode("utf-8") for name, value in headers.items()}
    answer = shared.get(path, headers=encoded)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in answer.text
    assert shared.get(f"{path}?token=wrong").status_code == 401


def test_a_wrong_host_or_origin_is_refused_even_with_the_token(shared):
    for wrong in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"sec-fetch-site": "same-site"}):
        assert shared.get("/api/health", headers={"authorization": f"Bearer {TOKEN}"} | wrong).status_code in (403, 421)


@pytest.mark.parametrize("host", ["192.168.0.7:8765", "10.0.0.1", "[fe80::1]:8765", "localhost:8765"])
def test_with_the_token_the_address_and_the_name_of_the_machine_are_answered(shared, host):
    headers = {"host": host, "authorization": f"Bearer {TOKEN}"}
    assert shared.get("/api/health", headers=headers).status_code == 200


def test_the_printed_address_gives_the_browser_a_cookie(shared):
    answer = shared.get(f"/?token={TOKEN}")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert re.search("httponly", cookie, re.IGNORECASE)
    assert re.search("samesite=strict", cookie, re.IGNORECASE)
    shared.cookies.clear()
    assert shared.get("/api/health", headers={"cookie": f"{COOKIE}={TOKEN}"}).status_code == 200
    assert shared.get(f"/api/health?token={TOKEN}").status_code == 401, "tokens in addresses end up in logs"


def test_a_public_service_answers_everyone_in_any_frame(public, pictures):
    headers = {"host": "demo.example", "origin": "https://demo.example", "sec-fetch-site": "cross-site"}
    answer = public.post("/api/tag", files={"files": pictures[0]}, headers=headers)
    assert answer.status_code == 200
    assert "frame-ancestors *" in answer.headers["content-security-policy"]
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_public_service_limits_the_images_of_a_client(open_app, pictures):
    client = open_app(Access(public=True), limits=Limits(images_per_minute=6, files=6))
    files = [("files", data) for data in pictures]
    assert client.post("/api/tag", files=files[:4]).status_code == 200
    refused = client.post("/api/tag", files=files[:4])
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert client.post("/api/evidence", files={"file": pictures[0]}, data={"tag": "tag_1"}).status_code == 200
    assert client.post("/api/tag", files=files[:1]).status_code == 429
    assert client.get("/api/health").status_code == 200


def test_the_rate_of_a_client_recovers_with_time():
    now = [0.0]
    rate = RateLimit(60, lambda: now[0])
    for _ in range(60):
        rate.take("a")
    with pytest.raises(HTTPException):
        rate.take("a")
    rate.take("b", 60)
    now[0] += 2.5
    rate.take("a", 2)
    with pytest.raises(HTTPException):
        rate.take("a")
    now[0] += 3600
    with pytest.raises(HTTPException):
        rate.take("a", 61)
    rate.take("a", 60)


def test_the_rates_of_few_clients_are_remembered(monkeypatch):
    monkeypatch.setattr("joytag.app.security.MOST_CLIENTS", 10)
    rate = RateLimit(60)
    for number in range(100):
        rate.take(str(number))
    assert len(rate._due) == 10


def test_one_client_has_many_addresses_of_ipv6():
    assert client_of({"client": ("2001:db8::1", 5)}) == client_of({"client": ("2001:db8::ffff", 6)})
    assert client_of({"client": ("2001:db8:0:1::1", 5)}) != client_of({"client": ("2001:db8::1", 5)})
    assert client_of({"client": ("10.0.0.1", 5)}) == "10.0.0.1"
    assert client_of({"client": None}) == ""


class Upload:
    """An ASGI request whose body comes in chunks with pauses; `answer` is its status."""

    def __init__(self, client: str = "10.0.0.1", pauses: tuple[float, ...] = (), chunk: int = 100) -> None:
        self.pauses, self.chunk, self.answer = list(pauses), chunk, 0
        headers = [(b"content-type", b"multipart/form-data; boundary=x"), (b"host", b"localhost")]
        self.scope = {"type": "http", "method": "POST", "path": "/api/tag", "client": (client, 1), "headers": headers}

    async def receive(self):
        await asyncio.sleep(self.pauses.pop(0) if self.pauses else 0)
        return {"type": "http.request", "body": bytes(self.chunk), "more_body": bool(self.pauses)}

    async def send(self, message):
        self.answer = message.get("status", self.answer)


async def read_all(scope, receive, send):
    """An app that reads the body, and reports errors as FastAPI does."""
    try:
        while (await receive())["more_body"]:
            pass
        status = 200
    except HTTPException as error:
        status = error.status_code
    await send({"type": "http.response.start", "status": status, "headers": []})


def statuses(limits: Limits, *uploads: Upload, public: bool = False) -> list[int]:
    """The answers to uploads that begin at the same time."""
    guard = Guard(read_all, Access(public=public), limits, None)

    async def run() -> None:
        await asyncio.gather(*(guard(upload.scope, upload.receive, upload.send) for upload in uploads))

    asyncio.run(run())
    return [upload.answer for upload in uploads]


def test_an_upload_that_is_too_slow_is_ended():
    limits = Limits(patience=0.2, slowest=1_000)
    slow, steady = Upload(pauses=(0.05,) * 20, chunk=1), Upload(pauses=(0.05,) * 20, chunk=1_000)
    assert statuses(limits, slow, steady) == [408, 200]


def test_uploads_wait_for_their_turn_and_are_refused_when_it_does_not_come():
    waiting = [Upload(pauses=(0.05,)) for _ in range(6)]
    assert statuses(Limits(uploads=2), *waiting) == [200] * 6
    waiting = [Upload(pauses=(0.05,) * 20) for _ in range(3)]
    assert sorted(statuses(Limits(uploads=2, patience=0.3, slowest=1), *waiting)) == [200, 200, 503]


def test_one_client_cannot_take_all_turns():
    uploads = [Upload("10.0.0.1", (0.1,)) for _ in range(3)] + [Upload("10.0.0.2", (0.1,))]
    assert statuses(Limits(uploads=8, uploads_of_client=2), *uploads) == [200, 200, 429, 200]


def test_a_token_of_the_environment_must_be_long(monkeypatch):
    options = parse(["--model", "x"])
    monkeypatch.setenv("JOYTAG_TOKEN", "short")
    with pytest.raises(ValueError, match="JOYTAG_TOKEN: needs at least 16"):
        choose_token(options)
    monkeypatch.setenv("JOYTAG_TOKEN", TOKEN)
    assert choose_token(options) == TOKEN
    assert choose_token(parse(["--model", "x", "--public"])) == ""


def test_the_printed_address_has_the_token():
    with listen("127.0.0.1", 0) as listener:
        number = listener.getsockname()[1]
        assert address(listener, Access()) == f"http://127.0.0.1:{number}/"
        assert address(listener, Access("0.0.0.0", TOKEN)) == f"http://localhost:{number}/?token={TOKEN}"
        assert address(listener, Access("::1")) == f"http://[::1]:{number}/"
        with pytest.raises(ValueError, match=f"--port {number}: "):
            listen("127.0.0.1", number)
