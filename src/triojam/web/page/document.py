"""The page as one document: the parts of the folder assets put together, and the policy that fits them."""

import base64
import gzip
import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Document(NamedTuple):
    """The page. packed: the same with gzip. policy: the value of Content-Security-Policy."""

    html: bytes
    packed: bytes
    policy: str


@cache
def load() -> Document:
    """Put the page together. In `page.html`, the name of a file in double braces stands for its content.

    One document, because it then works at any path of a proxy, and cannot be half of an old version.
    """
    assets = files("triojam.web").joinpath("assets")

    def read(name: str) -> str:
        return assets.joinpath(name).read_text("utf-8")

    html = re.sub(r"{{([\w.]+)}}", lambda match: read(match[1]), read("page.html"))
    return Document(html.encode(), gzip.compress(html.encode(), mtime=0), _policy(html))


def _policy(html: str) -> str:
    """Allow the page's own styles and scripts, and requests to its own server; nothing else."""

    def sources(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; script-src {sources('script')}; style-src {sources('style')}"
    )
