"""Programs that people have beside Hawser, run on ports of their own in a folder of their own."""

import shutil
import subprocess
import urllib.request

import pytest
from conftest import PATIENCE, eventually, free_port

__all__ = [
    "PATIENCE", "Program", "dig", "eventually", "fetch", "free_port", "needs", "path_of", "short",
]


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


def needs(program: str):
    found = shutil.which(program) or shutil.which(f"/usr/sbin/{program}")
    return pytest.mark.skipif(not found, reason=f"Debian's {program}")


def path_of(program: str) -> str:
    return shutil.which(program) or f"/usr/sbin/{program}"


def dig(port: int, *words: str) -> subprocess.CompletedProcess:
    command = ["dig", "@127.0.0.1", "-p", str(port), "+tries=1", "+time=5", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def short(port: int, *words: str) -> set:
    return set(dig(port, "+short", *words).stdout.split("\n")) - {""}
