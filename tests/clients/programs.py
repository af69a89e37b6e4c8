"""Programs that people have beside Hawser, run on ports of their own in a folder of their own."""

import subprocess
import urllib.request

from conftest import PATIENCE, eventually, free_port

__all__ = ["PATIENCE", "Program", "eventually", "fetch", "free_port"]


class Program:
    """A running program; stopped when the block that made it ends."""

    def __init__(self, folder, *command: str):
        self.log = folder / f"{command[0].rsplit('/', 1)[-1]}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return reply.read()
