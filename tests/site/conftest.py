"""The built site, a server that serves it below a path as a project's pages are served, and a browser."""

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

SITE = Path(__file__).parents[2] / "build/site"
SWITCHES = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
]  # fmt: skip


class Host(SimpleHTTPRequestHandler):
    """A static host: the site stands below ``/book/``, and 404.html answers for every address that does not exist."""

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.removeprefix("/book") if path.startswith("/book/") else "/nowhere")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        body = Path(self.directory, "404.html").read_bytes()
        self.send_response(code)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def site_root() -> Path:
    """Return ``build/site``."""
    if not (SITE / "index.html").exists():
        pytest.fail("there is no build/site: run nox -s site, or nox -s tests, which builds it first")
    return SITE


@pytest.fixture(scope="session")
def site_url(site_root: Path) -> Iterator[str]:
    """Return the address of the site, with a slash at its end."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Host, directory=str(site_root))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/book/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Return headless Chromium."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on the path; on Debian and Ubuntu: apt-get install chromium fonts-noto-cjk")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=SWITCHES)
        yield chromium
        chromium.close()
