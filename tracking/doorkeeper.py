"""The door of MLflow's server: what it would do for anybody on this machine, and nobody here asked for, stays outside.

MLflow 3.17 has an assistant, whose server side edits files and runs shell commands for whoever reaches the port: every user of the
machine, and every page that another server of it shows to a browser, because MLflow trusts all origins on localhost. Here the paths of
the assistant answer 404, its panel does not unfold by itself over a quarter of a person's first page, and an origin on localhost has
to be this very port. Other hosts and origins are MLflow's own to refuse (:data:`tracking.server.HOSTS`).

:func:`tracking.server.start` names :func:`app` to ``mlflow server --app-name``. Who wants the assistant starts MLflow by itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

ASSISTANT = "/mlflow/assistant"
LOCAL = ("localhost", "127.0.0.1", "::1")
FOLDED = "<script>localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')</script>"
"""Makes MLflow 3.17 believe that its panel has unfolded once; other versions read it not."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def app() -> Doorkeeper:
    """MLflow's server behind the door: a factory, because MLflow looks at its name in a process that need not load the server."""
    from mlflow.server.fastapi_app import app as server

    return Doorkeeper(server)


class Doorkeeper:
    """An ASGI application before ``server``, another one."""

    def __init__(self, server: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.server = server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.server(scope, receive, send)
        elif ASSISTANT in scope["path"]:
            await _answer(send, 404, "The assistant is switched off.")
        elif _of_another_port(dict(scope["headers"])):
            await _answer(send, 403, "Pages of other servers on this machine are refused.")
        else:
            await self.server(scope, receive, _Page(send) if (scope["method"], scope["path"]) == ("GET", "/") else send)


def _of_another_port(headers: dict[bytes, bytes]) -> bool:
    """Whether a browser sends this for a page that another server on localhost has shown."""
    try:
        origin = urlsplit(headers.get(b"origin", b"").decode())
        return origin.hostname in LOCAL and origin.port != urlsplit("//" + headers.get(b"host", b"").decode()).port
    except ValueError:  # no address at all
        return True


async def _answer(send: Send, status: int, text: str) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": text.encode()})


class _Page:
    """Sends an answer on, with :data:`FOLDED` at the head where it is a page."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.start: dict[str, Any] | None = None
        self.body = b""

    async def __call__(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start" and b"text/html" in dict(message["headers"]).get(b"content-type", b""):
            self.start = message  # its length is known once the page is whole
        elif self.start is None:
            await self.send(message)
        else:
            self.body += message.get("body", b"")
            if not message.get("more_body"):
                body = self.body.replace(b"<head>", b"<head>" + FOLDED.encode(), 1)
                # without the tag of what the page was, by which a browser would keep that
                kept = [(k, v) for k, v in self.start["headers"] if k.lower() not in (b"content-length", b"etag", b"last-modified")]
                await self.send({**self.start, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
                await self.send({"type": "http.response.body", "body": body})
