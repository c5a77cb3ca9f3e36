"""Files from a Python package index: found on its simple page, fetched resumably, checked by hash."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from ..error import ModelError

Progress = Callable[[int, int], None]
"""Called with the bytes that are there and the bytes there will be."""

DEFAULT_INDEX = "https://pypi.org/simple"
_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 5  # in a row that come no further than an earlier one
_CHUNK = 1 << 18
# What may go away when tried again; a full disk is none of them.
_LINE_ERRORS = (
    urllib.error.URLError,
    ssl.SSLError,
    TimeoutError,
    ConnectionError,
    http.client.HTTPException,
)


def failed(reason: str) -> ModelError:
    """The error of everything that goes wrong on the way."""
    return ModelError.DownloadFailed(reason=reason)


def index_url() -> str:
    """The package index: ``PIP_INDEX_URL``, else PyPI. Raises ``ModelError.DownloadFailed`` if no address."""
    url = os.environ.get("PIP_INDEX_URL", "").strip().rstrip("/") or DEFAULT_INDEX
    try:
        urlsplit(url)
    except ValueError as error:
        raise failed(f"PIP_INDEX_URL is no address: {error}") from error
    return url


def find_file(project: str, file_name: str) -> str:
    """The address of one file of a project, from the index's simple page (PEP 503 or PEP 691).

    Raises ``ModelError.DownloadFailed`` when the index cannot be reached or does not list the file.
    """
    page = f"{index_url()}/{project}/"
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    try:
        with _open(page, {"Accept": accept}) as response:
            text = response.read().decode("utf-8", "replace")
            page = response.geturl()
            is_json = "json" in response.headers.get("Content-Type", "")
        if is_json:
            listed = {str(entry["filename"]): str(entry["url"]) for entry in json.loads(text)["files"]}
        else:
            links = [unescape(link) for link in re.findall(r"<a\s[^>]*?href=[\"']([^\"']+)", text, re.IGNORECASE)]
            listed = {unquote(urlsplit(link).path.rpartition("/")[2]): link for link in links}
    except (OSError, http.client.HTTPException) as error:
        raise failed(f"{shown(page)}: {_reason(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise failed(f"{shown(page)}: this is no package index's page") from error
    if file_name not in listed:
        raise failed(f"{shown(page)} does not list {file_name}; set PIP_INDEX_URL to an index that does")
    return urljoin(page, listed[file_name])


def fetch(url: str, path: Path, size: int, sha256: str, progress: Progress | None = None) -> None:
    """Fetch ``url`` to ``path``, going on from the bytes that are there; a broken line is taken up again.

    When it returns, the file has this size and hash. Raises ``ModelError.DownloadFailed`` when the server
    sends something else (the file is removed) or the line stays broken (the bytes so far are kept).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.exists()
    most = attempts = 0
    while (have := path.stat().st_size if path.exists() else 0) < size:
        most = max(most, have)
        try:
            _fetch_rest(url, path, have, size, progress)
            reason = "the server ended the transfer early"
        except urllib.error.HTTPError as error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and have:
                path.unlink()
            elif error.code < 500 and error.code != http.client.TOO_MANY_REQUESTS:
                raise failed(f"{shown(url)}: {_reason(error)}") from error
            reason = _reason(error)
        except _LINE_ERRORS as error:
            reason = _reason(error)
        now = path.stat().st_size if path.exists() else 0
        attempts = 0 if now > most else attempts + 1
        if now < size and attempts == _ATTEMPTS:
            kept = f" after {now} of {size} bytes; run again to go on from there" if now else ""
            raise failed(f"{shown(url)}: {reason}{kept}")
        if attempts:
            time.sleep(0.1 * 2**attempts)
    if (found := file_sha256(path)) == sha256:
        return
    path.unlink()
    if not old:
        raise failed(f"{shown(url)} is not the file it should be: sha256 {found}, expected {sha256}; removed")
    fetch(url, path, size, sha256, progress)  # the bytes of an earlier run may have been the bad ones


def _fetch_rest(url: str, path: Path, have: int, size: int, progress: Progress | None) -> None:
    """One request: append from byte ``have`` on if the server can, else start over."""
    with _open(url, {"Range": f"bytes={have}-"} if have else {}) as response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise http.client.HTTPException("the server sent another range than the one asked for")
        done = have if resumed else 0
        with path.open("ab" if resumed else "wb") as file:
            while done < size and (chunk := response.read(min(_CHUNK, size - done))):
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, size)


def file_sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def shown(url: str) -> str:
    """An address as it may be printed: without a user and password."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """Open an http(s) address; a user and password in it become a header, which urllib does not do."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise failed(f"{shown(url)}: takes an http or https address; check PIP_INDEX_URL")
    user, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit((parts.scheme, host, parts.path, parts.query, "")))
    for name, value in {"User-Agent": "metal-candle", **headers}.items():
        request.add_header(name, value)
    if user:
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    context = _certificates() if parts.scheme == "https" else None
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT, context=context)
    except urllib.error.HTTPError as error:
        error.close()  # it is an open answer too
        raise
    return response


def _certificates() -> ssl.SSLContext:
    """The system's certificates; pip's setting; certifi's where Python was installed without any (macOS)."""
    context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
    paths = ssl.get_default_verify_paths()
    if not context.get_ca_certs() and paths.cafile is None and paths.capath is None:
        try:
            import certifi
        except ImportError:
            return context  # the failed handshake then says SSL_CERT_FILE
        context.load_verify_locations(certifi.where())
    return context


def _reason(error: Exception) -> str:
    """One line on what went wrong, with what to do where that is not plain."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        return _reason(error.reason)
    if isinstance(error, ssl.SSLCertVerificationError):
        return "the server's certificate is not trusted; set SSL_CERT_FILE to your certificates"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
