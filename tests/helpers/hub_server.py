"""A Hub on loopback that speaks huggingface_hub's language, with or without a storage host behind it."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import huggingface_hub
from huggingface_hub import constants

TOKEN = "_".join(("hf", "secret"))


@lru_cache
def digest(data):
    return hashlib.sha1(data).hexdigest()


class Server(ThreadingHTTPServer):
    """Sends files, whole or in part, and writes down what was asked of it and how many bytes of files it sent.

    ``faults``, one a request for a part, are called with its handler and the answer, instead of sending that; ``None``
    lets it be sent. When they are used up it is ``always``'s turn.
    """

    daemon_threads = True
    sends_parts = True

    def __init__(self, handler):
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked, self.tokens, self.parts, self.sent = [], set(), [], 0
        self.faults, self.always, self.lock = [], None, threading.Lock()

    def fault(self):
        with self.lock:
            return self.faults.pop(0) if self.faults else self.always

    def handle_error(self, request, client_address):
        pass  # a client that hangs up


class Hub(Server):
    """Repositories by name, each with its files by revision."""

    def __init__(self):
        super().__init__(HubHandler)
        self.repos, self.commits, self.private, self.refused, self.storage = {}, {}, set(), {}, None

    def put(self, repo_id, files, revision="main"):
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repos.setdefault(repo_id, {})[revision] = files
        self.commits[repo_id, revision] = self.commits[repo_id, commit] = (commit, files)

    def downloads(self):
        return [path for method, path in self.asked if method == "GET" and "/resolve/" in path]


class Storage(Server):
    """What large files are sent from: addresses that serve ``lasting`` requests each, and need no token."""

    lasting = 10**9

    def __init__(self):
        super().__init__(StorageHandler)
        self.files, self.uses = {}, {}

    def address(self, data):
        with self.lock:
            path = f"/{len(self.files)}"
            self.files[path], self.uses[path] = data, 0
        return f"{self.url}{path}?signature=x"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer's body waits for its headers to be acknowledged

    def path_asked(self):
        path = unquote(self.path.partition("?")[0])
        self.server.asked.append((self.command, path))
        self.server.tokens.add(self.headers.get("authorization"))
        return path

    def reply_file(self, data, headers):
        """The file, or the part of it that is asked for."""
        headers = {"ETag": f'"{digest(data)}"'} | headers
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.command == "HEAD" or not asked:
            return self.reply(200, headers, data)
        begin, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
        self.server.parts.append((begin, end))
        if not self.server.sends_parts:
            answer = (200, headers, data)
        elif begin >= end:
            answer = (416, headers | {"Content-Range": f"bytes */{len(data)}"}, b"")
        else:
            answer = (206, headers | {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}, data[begin:end])
        fault = self.server.fault()
        return fault(self, *answer) if fault else self.reply(*answer)

    def reply_json(self, data):
        self.reply(200, {"Content-Type": "application/json"}, json.dumps(data).encode())

    def reply(self, status, headers, body=b"", promised=None):
        """With a ``promised`` length, the connection ends after the body whatever that is."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if promised is None else promised))
        self.end_headers()
        if self.command != "HEAD":
            with self.server.lock:
                self.server.sent += len(body)
            self.wfile.write(body)
        self.close_connection = self.close_connection or promised is not None

    def log_message(self, *arguments):
        pass


class HubHandler(Handler):
    def do_HEAD(self):
        hub, path = self.server, self.path_asked()
        found = re.fullmatch(r"/(\w+/\w+)/resolve/(.+)/([\w.]+)", path)
        repo_id, revision, name = found.groups() if found else ("", "", "")
        if repo_id in hub.refused:
            return self.reply(*hub.refused[repo_id])
        if repo_id not in hub.repos or (
            repo_id in hub.private and self.headers.get("authorization") != f"Bearer {TOKEN}"
        ):
            return self.reply(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if (repo_id, revision) not in hub.commits:
            return self.reply(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": f"Invalid rev {revision}"})
        commit, files = hub.commits[repo_id, revision]
        if name not in files:
            return self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit}
        if hub.storage:
            linked = {"X-Linked-Size": str(len(files[name])), "X-Linked-ETag": f'"{hashlib.sha256().hexdigest()}"'}
            return self.reply(302, headers | linked | {"Location": hub.storage.address(files[name])})
        return self.reply_file(files[name], headers)

    do_GET = do_HEAD  # noqa: N815 - as http.server has it

    def do_POST(self):
        hub, path = self.server, unquote(self.path.partition("?")[0])
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        hub.asked.append(("POST", path))
        if path == "/api/validate-yaml":
            return self.reply_json({"errors": [], "warnings": []})
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self.reply(401, {"X-Error-Message": "Invalid username or password."})
        if path == "/api/repos/create":
            asked = json.loads(body)
            return self.reply_json({"url": f"{hub.url}/{asked['organization']}/{asked['name']}"})
        _, _, _, owner, name, action, revision = path.split("/")
        if action == "preupload":
            modes = [{"uploadMode": "regular", "shouldIgnore": False, **file} for file in json.loads(body)["files"]]
            return self.reply_json({"files": modes})
        assert action == "commit"
        entries = [json.loads(line) for line in body.splitlines()]
        added = [entry["value"] for entry in entries if entry["key"] == "file"]
        hub.put(f"{owner}/{name}", {file["path"]: base64.b64decode(file["content"]) for file in added}, revision)
        oid = "c" * 40
        return self.reply_json({"commitUrl": f"{hub.url}/{owner}/{name}/commit/{oid}", "commitOid": oid})


class StorageHandler(Handler):
    def do_GET(self):
        storage, path = self.server, self.path_asked()
        with storage.lock:
            storage.uses[path] += 1
            expired = storage.uses[path] > storage.lasting
        if expired:
            return self.reply(
                403, {}, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
            )
        return self.reply_file(storage.files[path], {})


@contextmanager
def running(server):
    """The server, answering."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def hub_instead(monkeypatch, tmp_path):
    """A Hub of our own, which this process asks instead of the real one; the cache is empty, nobody is logged in."""
    with running(Hub()) as server:
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "no token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
        }.items():
            assert hasattr(constants, name)
            monkeypatch.setattr(constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        huggingface_hub.close_session()  # an open one keeps the proxies of before
        yield server
    huggingface_hub.close_session()
