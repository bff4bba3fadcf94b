"""Directories of runs, written by hand."""

import contextlib
import json
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from mbrl_jax.experiment.members import Members
from mbrl_jax.runs import workdir as workdirs
from mbrl_jax.watch import overview, server, view
from tests import small


def write_config(path: Path, num_seeds: int = 2, **changes) -> None:
    """`config.json` of the small Catch; `changes` are put into the experiment's JSON."""
    data = workdirs.as_json(workdirs.RunConfig(small.catch(), Members(0, num_seeds)))
    data["experiment"] |= changes
    (path / "config.json").write_text(json.dumps(data))


def row(step: int, seed: int, **metrics) -> dict:
    """A row; one episode of return `seed` + `step` / 1000 unless told otherwise."""
    episode = {"episode/return": seed + step / 1000, "episode/count": 1}
    found = {"step": step, "seed": seed, "env_steps": step - 1, **episode, **metrics}
    return {name.replace("__", "/"): value for name, value in found.items()}


def append(path: Path, rows, end: str = "\n") -> None:
    """Add rows to `metrics.jsonl`."""
    with (path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("\n".join(json.dumps(one) for one in rows) + end)


class Answer(NamedTuple):
    """What the server says."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        """The body as a value."""
        return json.loads(self.body)


@contextlib.contextmanager
def served(path: Path, monkeypatch, strips=None, *, many: bool = False):
    """A server of a directory, which looks at it anew for each request; yields `ask(path, …)`.

    `many`: it is a folder of runs.
    """
    for module in (view, overview):
        monkeypatch.setattr(module, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(overview, "FIND_SECONDS", 0.0)
    shown = overview.Overview(path) if many else view.View(path, strips)
    listening = server.Server(shown, "127.0.0.1", 0)
    thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
    thread.start()

    def ask(where: str = "data.json", method: str = "GET", **headers) -> Answer:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        asked = urllib.request.Request(listening.url + where, method=method, headers=headers)
        try:
            with urllib.request.urlopen(asked, timeout=30) as found:
                return Answer(found.status, dict(found.headers), found.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())

    ask.url, ask.port, ask.server = listening.url, listening.server_port, listening
    try:
        yield ask
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
