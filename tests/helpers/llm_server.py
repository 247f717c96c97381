"""A language model's server on loopback, which gives replies that a test wrote."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

SECRET = "sk-proj-0123456789abcdefghij"


@pytest.fixture
def key(monkeypatch):
    """A key in the environment, in which nothing else says what to ask."""
    pytest.importorskip("openai")
    for name in ("http_proxy", "https_proxy", "all_proxy", "openai_base_url", "openai_org_id", "openai_project_id"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    return SECRET


class Reply:
    """What the server sends; by default a chat completion with this text."""

    def __init__(self, text=None, status=200, body=None, finish="stop", headers=(), wait=0.0, cut=0):
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        self.body = json.dumps(whole) if body is None else body
        self.status, self.headers, self.wait, self.cut = status, dict(headers), wait, cut


def failure(status, message, headers=(), **more):
    """An error in OpenAI's form."""
    return Reply(status=status, body=json.dumps({"error": {"message": message, **more}}), headers=headers)


@contextmanager
def serving(*replies):
    """A server on loopback that gives these replies in turn; yields its address and the requests that it gets."""
    waiting, requests = list(replies), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            reply = waiting.pop(0)
            if reply.wait:
                time.sleep(reply.wait)
            data = reply.body.encode()
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data) + reply.cut))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
