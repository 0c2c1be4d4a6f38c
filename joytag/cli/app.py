"""Tag images in the browser, see why, and serve the same to programs."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from joytag.app import served
from joytag.app.security import LOOPBACK, Access, is_loopback
from joytag.app.service import create_app
from joytag.cli.arguments import MODEL, Parser, add_tagger_options
from joytag.core import settings
from joytag.core.terminal import print

TOKEN = "JOYTAG_TOKEN"  # in the environment: the token, which otherwise is drawn at each start
SHORTEST_TOKEN = 16
PORT = 8765
PATIENCE = 10  # seconds for requests to end after Ctrl-C
MOST_CONNECTIONS = 512


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, by default this process's. Raises ValueError."""
    parser = Parser(prog="joytag app", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, action="append", help=f"{MODEL}; may be given several times")
    folder = parser.add_mutually_exclusive_group()
    text = "a folder of images to label, with its subfolders; decisions and scores are kept in its folder .joytag"
    folder.add_argument("--images", type=Path, metavar="FOLDER", help=text)
    folder.add_argument("--data", type=Path, metavar="DATASET", help="a dataset directory to label instead")
    text = "implied tags and exclusive groups: YAML with implies: {cat: [animal]}, exclusive: {tone: [light, dark]}"
    add("--rules", type=Path, metavar="FILE", help=text)
    text = "address to listen on; any but this machine's own needs the token that is printed (default: %(default)s)"
    add("--host", default=LOOPBACK, help=text)
    add("--port", type=int, default=PORT, help="port to listen on; 0 chooses a free one (default: %(default)s)")
    text = "answer everyone, without a token: tagging alone, no folder, no labelling, with limits for each visitor"
    add("--public", action="store_true", help=text)
    add_tagger_options(add)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command until Ctrl-C."""
    options = parse(arguments)
    access = Access(options.host, choose_token(options), options.public)
    listener = listen(options.host, options.port)
    models = served.load(options.model, options.device, options.precision, options.engine)
    with ExitStack() as stack:
        for model in models:
            stack.callback(model.batcher.close)
            print(f"{model.name}: {len(model.tagger.tags):,} tags, {model.tagger}")
        labelling = None
        if root := options.images or options.data:  # imported only here: tagging alone needs fewer packages
            from joytag.app.label_routes import create_router
            from joytag.app.labelling import Labelling
            from joytag.app.suggestions import Rules

            rules = settings.load(Rules, options.rules) if options.rules else Rules()
            labelling = create_router(stack.enter_context(Labelling.opened(root, models[0], rules)))
        serve(create_app(models, access, labelling=labelling), listener, access)


def serve(app: FastAPI, listener: socket.socket, access: Access) -> None:
    """Serve until Ctrl-C."""
    print(f"Open {address(listener, access)} in a browser; Ctrl-C ends it", flush=True)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        http="h11",  # of which a request's headers are bounded
        ws="none",
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=PATIENCE,
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:  # raised when all is closed
        print("Stopped")


def choose_token(options: argparse.Namespace) -> str:
    """Return the token: none where nobody else can come or everybody may, that of the environment, or a new one."""
    token = os.environ.get(TOKEN, "")
    if options.public:
        return ""
    if token and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise ValueError(f"{TOKEN}: needs at least {SHORTEST_TOKEN} characters of ASCII, such as openssl rand -hex 16")
    return token or ("" if is_loopback(options.host) else secrets.token_urlsafe(24))


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address. Raises ValueError when that is impossible."""
    try:
        family, _, _, _, (name, _, *scope) = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)[0]
        return socket.create_server((name, port, *scope), family=family)  # who comes while models load waits
    except (OSError, OverflowError) as error:
        raise ValueError(f"--host {host} --port {port}: {getattr(error, 'strerror', error)}; choose others") from None


def address(listener: socket.socket, access: Access) -> str:
    """Return the page's address, with the token if one is needed."""
    host = "localhost" if access.host in ("0.0.0.0", "::") else access.host
    host = f"[{host.strip('[]')}]" if ":" in host else host
    return f"http://{host}:{listener.getsockname()[1]}/" + (f"?token={access.token}" if access.token else "")
