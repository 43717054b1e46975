import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """A hub of one repository on 127.0.0.1: metadata by HEAD, a redirect to the content, ranges, faults on demand."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.content_url = f"http://localhost:{self.server_port}"  # another host, as the hub's content is
        self.files = {}
        self.commit = COMMIT
        self.requests = []
        self.drop_after = []
        """Bytes after which each following content request breaks off; None refuses it with status 503."""
        self.stall_after = None
        """Bytes after which the next content request hangs; `stalled` tells when it does."""
        self.stalled = threading.Event()
        self.announced_sha256 = None
        self.knows_head = True
        self.content_type = "application/octet-stream"
        self.gated = self.private = False

    def content_requests(self):
        return [request for request in self.requests if request.method == "GET" and "/content/" in request.path]


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer(send=False)

    def do_GET(self):
        self._answer(send=True)

    def _answer(self, send):
        hub, parts = self.server, self.path.lstrip("/").split("/")
        hub.requests.append(SimpleNamespace(method=self.command, path=self.path, headers=self.headers))
        if parts[0] == "content":
            return self._content(hub.files["/".join(parts[1:])], send)
        if parts[:2] != ["owner", "repository"]:
            return self._end(404, {"X-Error-Code": "RepoNotFound"})
        if hub.private:
            return self._end(401, {"X-Error-Message": "Invalid username or password."})
        if hub.gated:
            return self._end(403, {"X-Error-Code": "GatedRepo"})
        revision, name = parts[3], "/".join(parts[4:])
        if revision not in ("main", "v1", hub.commit):
            return self._end(404, {"X-Error-Code": "RevisionNotFound"})
        if name not in hub.files:
            return self._end(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commit})
        content = hub.files[name]
        digest = hub.announced_sha256 or hashlib.sha256(content).hexdigest()
        return self._end(
            302,
            {
                "Location": f"{hub.content_url}/content/{name}",
                "X-Repo-Commit": hub.commit,
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(content)),
            },
        )

    def _content(self, content, send):
        hub, first = self.server, 0
        if not send and not hub.knows_head:
            return self._end(405, {})
        if "Range" in self.headers:
            first = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
        drop = hub.drop_after.pop(0) if send and hub.drop_after else len(content)
        if drop is None:
            return self._end(503, {})
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        self.send_header("Content-Type", hub.content_type)
        self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if send and hub.stall_after is not None:
            self.wfile.write(content[first : first + hub.stall_after])
            hub.stall_after = None
            hub.stalled.set()
            self.rfile.read(1)  # until the client is gone
        elif send:
            self.wfile.write(content[first : first + drop])
            if drop < len(content) - first:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
        return None

    def _end(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture(autouse=True)
def no_files_in_the_users_cache(tmp_path_factory, monkeypatch):
    """Keep what the tests write out of the user's cache directory."""
    monkeypatch.setenv("BENCH_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "bench-cache"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory, and an empty one of the hub's own client."""
    monkeypatch.setenv("BENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-client"))
    return tmp_path / "cache"


def use_endpoint(monkeypatch, url):
    """Do what HF_ENDPOINT does when the client is imported."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch, cache):
    """A running hub that the client takes for the real one."""
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    use_endpoint(monkeypatch, server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setenv("HF_TOKEN", "")
    yield server
    server.shutdown()
    server.server_close()
