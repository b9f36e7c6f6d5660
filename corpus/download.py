"""Download a published file once: resume where the transfer broke off, and verify the SHA-256."""

import time
from pathlib import Path

from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session
from tqdm import tqdm

from corpus.atomic_files import sha256 as file_sha256

# Failures in a row without a new byte before giving up, and the seconds to wait after the first one, then doubled.
ATTEMPTS = 5
WAIT_SECONDS = 1.0

TIMEOUT_SECONDS = 30

# HTTP's "range not satisfiable": the part is complete, or longer than the file.
NOTHING_FOLLOWS = 416


def download(url: str, sha256: str, folder: Path) -> Path:
    """Download a file, unless the folder has it.

    What has arrived is kept as `.part`, also if the process is killed, and the next call resumes from there. The
    session is that of huggingface_hub, which respects proxies and HF_HUB_OFFLINE.

    Args:
        url: The address; its last part is the name of the file.
        sha256: The expected SHA-256 of the file, in hexadecimal.
        folder: An existing folder for the file.

    Returns:
        The path of the file, whose SHA-256 is the expected one.

    Raises:
        OSError: The download failed, or the file has another SHA-256.
    """
    file = folder / url.rpartition("/")[2]
    if file.is_file() and file_sha256(file) == sha256:
        return file
    part = file.with_name(f"{file.name}.part")
    failures = 0
    while True:
        before = _size(part)
        try:
            status = _fetch(url, part)
            if status < 400 or status == NOTHING_FOLLOWS:
                break
            reason, may_pass = f"the server answers {status}", status >= 500 or status in (408, 429)
        except OfflineModeIsEnabled:
            raise OSError(
                f"HF_HUB_OFFLINE is set and {file.name} is not in {folder}; unset it, or give the file by --input."
            ) from None
        except HTTPError as error:
            reason, may_pass = str(error) or type(error).__name__, True
        failures = failures + 1 if _size(part) == before else 1
        if failures == ATTEMPTS or not may_pass:
            raise OSError(f"{url} could not be fetched: {reason}. What has arrived is kept; try again later.")
        time.sleep(WAIT_SECONDS * 2 ** (failures - 1))

    found = file_sha256(part)
    if found != sha256:
        part.unlink()
        raise OSError(f"{url} sent another file than was published: its SHA-256 is {found}, not {sha256}.")
    return part.replace(file)


def _fetch(url: str, part: Path) -> int:
    """Append the rest of the file to a part, in one request; returns the HTTP status."""
    size = _size(part)
    # A compressed transfer has no byte positions to resume from.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={size}-"} if size else {})
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=True) as response:
        if response.status_code >= 400:
            return response.status_code
        if response.status_code != 206:  # the whole file in place of the range
            size = 0
        total = size + int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        bar = tqdm(desc=part.stem, total=total, initial=size, unit="B", unit_scale=True, disable=None)
        with part.open("ab") as file, bar:
            file.truncate(size)
            for chunk in response.iter_raw():
                file.write(chunk)
                bar.update(len(chunk))
        return response.status_code


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
