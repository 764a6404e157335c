"""Where the site and its source can be reached, as far as the environment tells; nothing is ever made up."""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from languages import Language

ROOT = Path(__file__).parents[2]
VARIABLES = (
    "SITE_URL",
    "GITHUB_ACTIONS",
    "GITHUB_SERVER_URL",
    "GITHUB_REPOSITORY",
    "GITHUB_BASE_REF",
    "GITHUB_REF_NAME",
    "READTHEDOCS_CANONICAL_URL",
    "READTHEDOCS_GIT_CLONE_URL",
    "READTHEDOCS_GIT_IDENTIFIER",
    "READTHEDOCS_VERSION_TYPE",
)
"""All that is read from the environment."""

HOST = (
    r"(?P<host>(?:[\w-]+\.)+[a-z][a-z\d-]*)"  # a name with a dot: neither localhost nor an address in a private network
)
REMOTES = [
    re.compile(
        rf"https://(?:[^@/]+@)?{HOST}(?::\d+)?/(?P<path>.+)", re.I
    ),  # what stands before @ may be a token: dropped
    re.compile(rf"ssh://(?:[^@/]+@)?{HOST}(?::\d+)?/(?P<path>.+)", re.I),
    re.compile(rf"(?:[\w.-]+@){HOST}:(?P<path>[^/].*)", re.I),
]
LAYOUTS = {  # how hosts spell "show", "edit" and "report"; others understand the first
    "github": ("{url}/blob/{ref}/{path}?plain=1", "{url}/edit/{ref}/{path}", "{url}/issues/new?title={title}"),
    "gitlab": (
        "{url}/-/blob/{ref}/{path}?plain=1",
        "{url}/-/edit/{ref}/{path}",
        "{url}/-/issues/new?issue[title]={title}",
    ),
    "bitbucket": ("{url}/src/{ref}/{path}", "{url}/src/{ref}/{path}?mode=edit", "{url}/issues/new?title={title}"),
    "gitea": ("{url}/src/{ref}/{path}", "{url}/_edit/{ref}/{path}", "{url}/issues/new?title={title}"),
}


def site_url(environ: Mapping[str, str]) -> str | None:
    """Return the address below which the folders of the languages stand, with a slash at its end, or None.

    Raises:
        ValueError: if ``SITE_URL`` is not a web address.
    """
    url = environ.get("SITE_URL") or environ.get("READTHEDOCS_CANONICAL_URL") or _github_pages(environ)
    if not url:
        return None
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise ValueError(f"SITE_URL: expected an address such as https://example.org/book/, found {url!r}")
    return url.rstrip("/") + "/"


def _github_pages(environ: Mapping[str, str]) -> str | None:
    server = environ.get("GITHUB_SERVER_URL", "https://github.com")
    if environ.get("GITHUB_ACTIONS") != "true" or server != "https://github.com" or "GITHUB_REPOSITORY" not in environ:
        return None
    owner, name = environ["GITHUB_REPOSITORY"].split("/")
    host = f"{owner.lower()}.github.io"
    return f"https://{host}/" if name.lower() == host else f"https://{host}/{name}/"


def anyone(languages: Sequence[Language]) -> Language:
    """Return the language for those who read none of ours: English where there is an English site."""
    return next((row for row in languages if row.code == "en"), languages[0])


def alternates(languages: Sequence[Language], base: str, page: str) -> list[tuple[str, str]]:
    """Return the tag and the address of a page in each language, and for the readers of all others."""
    urls = [(row.tag, f"{base}{row.path}/{page}.html") for row in languages]
    default = base if page == "index" else f"{base}{anyone(languages).path}/{page}.html"
    return [*urls, ("x-default", default)]


@dataclass(frozen=True)
class Repository:
    """The public home of the source."""

    url: str
    ref: str

    def _link(self, kind: int, **parts: str) -> str:
        host = urlsplit(self.url).netloc
        layout = next((name for name in LAYOUTS if name in host), "gitea" if host == "codeberg.org" else "github")
        ref = f"branch/{self.ref}" if layout == "gitea" and kind == 0 else self.ref
        return LAYOUTS[layout][kind].format(url=self.url, ref=quote(ref), **{k: quote(v) for k, v in parts.items()})

    def view(self, path: str) -> str:
        """Return the address that shows a file."""
        return self._link(0, path=path)

    def edit(self, path: str) -> str:
        """Return the address where a file can be edited."""
        return self._link(1, path=path)

    def report(self, title: str) -> str:
        """Return the address where a problem can be reported."""
        return self._link(2, title=title)


def repository(environ: Mapping[str, str], root: Path = ROOT) -> Repository | None:
    """Return the repository that the host of the build names, else the git remote ``origin``, else None."""
    if environ.get("GITHUB_REPOSITORY"):
        server = environ.get("GITHUB_SERVER_URL", "https://github.com").rstrip("/")
        ref = environ.get("GITHUB_BASE_REF") or environ.get("GITHUB_REF_NAME") or "HEAD"
        return Repository(f"{server}/{environ['GITHUB_REPOSITORY']}", ref)
    if url := web_address(environ.get("READTHEDOCS_GIT_CLONE_URL", "")):
        external = environ.get("READTHEDOCS_VERSION_TYPE") == "external"  # a pull request, named by its number
        return Repository(url, "HEAD" if external else environ.get("READTHEDOCS_GIT_IDENTIFIER") or "HEAD")
    if url := web_address(_git(root, "remote", "get-url", "origin")):
        return Repository(url, _git(root, "rev-parse", "--abbrev-ref", "origin/HEAD").removeprefix("origin/") or "HEAD")
    return None


def web_address(remote: str) -> str | None:
    """Return the web page of a git remote: None for a local path, a bundle, or a machine without a public name."""
    match = next(filter(None, (pattern.fullmatch(remote) for pattern in REMOTES)), None)
    if match is None:
        return None
    return f"https://{match['host'].lower()}/{match['path'].strip('/').removesuffix('.git')}"


def _git(root: Path, *command: str) -> str:
    """Return what git prints, or nothing where there is no git, no repository or no answer."""
    try:
        done = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
