"""A Chromium for page tests: found on this machine, or installed.

`python tests/browser.py` installs one where there is none; `make test` begins with it. The fixture
`browser` of conftest.py drives the one found.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

__all__ = ["FLAGS", "find_chromium"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DOWNLOAD = [sys.executable, "-m", "playwright", "install", "chromium"]
FIX = (
    "no Chromium for the page tests: install one with 'apt-get install chromium' or "
    "'python -m playwright install --with-deps chromium', or name one in CHROMIUM=/path/to/it"
)


def find_chromium() -> str:
    """The path of a Chromium that starts; RuntimeError naming the fix where there is none."""
    if given := os.environ.get("CHROMIUM"):
        if _starts(given):
            return given
        raise RuntimeError(f"CHROMIUM={given} does not start; name a Chromium, or leave it out")
    for name in NAMES:
        path = shutil.which(name)
        if path and _starts(path):
            return path
    if _starts(path := _downloaded()):
        return path
    raise RuntimeError(FIX)


def _downloaded() -> str:
    """Where Playwright puts its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        return playwright.chromium.executable_path


def _starts(path: str) -> bool:
    """Whether it runs: an executable whose shared libraries are there as well."""
    return os.access(path, os.X_OK) and _succeeds([path, "--version"])


def _succeeds(command: Sequence[str]) -> bool:
    result = subprocess.run(command, capture_output=True, timeout=600)
    return result.returncode == 0


def _install() -> None:
    """Playwright's own download, else the system's package where this user may install it."""
    print("==> no Chromium: downloading Playwright's", flush=True)
    if _succeeds(DOWNLOAD) and _starts(_downloaded()):
        return
    if shutil.which("apt-get") and os.geteuid() == 0:
        print("==> that failed or does not start: apt-get install chromium", flush=True)
        _succeeds(["apt-get", "update", "-qq"])
        _succeeds(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"])


def main() -> None:
    """Find a Chromium or install one; exit code 1 and the fix where neither succeeds."""
    try:
        find_chromium()
    except RuntimeError:
        if not os.environ.get("CHROMIUM"):
            _install()
        try:
            find_chromium()
        except RuntimeError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
