"""What `chat-page` and `serve` do between reading options and the library."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from lfm2export.artifact import check_folder
from lfm2export.console import say
from lfm2export.consumers.chat_page import write_chat_page
from lfm2export.consumers.page_data import missing_for_whom
from lfm2export.consumers.page_server import PageServer, serve


def run_chat_page(folder: Path, force: bool) -> None:
    """Write the page, and say whom it serves badly."""
    check_folder(folder)
    page = write_chat_page(folder, force=force)
    say(f"{page.folder}: see it with lfm2-export serve {folder}; any static host takes the folder as it is")
    for line in missing_for_whom(folder, page.files):
        say(f"  {line}")


def run_serve(folder: Path, host: str, port: int, in_browser: bool) -> None:
    """Serve until a Ctrl-C."""
    check_folder(folder)

    def listening(server: PageServer) -> None:
        say(f"{server.address} serves {server.site.root}; Ctrl-C ends it")
        if server.public:
            say("  other machines may open it too; by plain HTTP their browsers give it one thread and no WebGPU")
        sys.stdout.flush()
        if in_browser:
            # Some browsers are waited for, and read the page meanwhile: this thread has to answer them.
            threading.Thread(target=_open_browser, args=(server.address,), daemon=True).start()

    serve(folder, host, port, listening)


def _open_browser(address: str) -> None:
    import webbrowser

    if not webbrowser.open(address):
        say(f"  no browser was found here; open {address} in one", err=True)
