"""The server gives a few fixed paths, to this machine alone, and changes nothing."""

import http.client
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.watch import server, view
from tests.watch.workdirs import append, row, served, write_config

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def ask(tmp_path, monkeypatch):
    write_config(tmp_path)
    with served(tmp_path, monkeypatch) as ask:
        yield ask


@pytest.mark.parametrize(
    "path", ["", "watch.js", "charts.js", "watch.css", "icon.svg", "data.json"]
)
def test_the_fixed_paths_are_there_and_say_what_they_are(ask, path):
    found = ask(path)
    assert found.status == 200 and found.body
    kinds = {"": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    kind = kinds.get(path.rpartition(".")[2], "application/json")
    assert found.headers["Content-Type"].startswith(kind)
    policy = found.headers["Content-Security-Policy"]
    assert (
        policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
    )
    assert found.headers["X-Content-Type-Options"] == "nosniff"
    assert found.headers["X-Frame-Options"] == "DENY"
    assert found.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in found.headers
    head = ask(path, method="HEAD")
    assert head.body == b"" and head.headers["Content-Length"] == str(len(found.body))


def test_the_page_holds_nothing_inline_and_asks_nobody_else():
    folder = ROOT / "mbrl_jax" / "watch" / "static"
    page = (folder / "index.html").read_text()
    assert " style=" not in page and "<style" not in page and " on" not in page.split("<body>")[1]
    assert page.count("<script") == page.count("<script src=")
    for path in folder.iterdir():
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert "http:" not in text and "https:" not in text and "//cdn" not in text, path
        assert "innerHTML" not in text and "eval(" not in text and "@import" not in text, path


@pytest.mark.parametrize(
    "path",
    [
        *(
            "x",
            "config.json",
            "../config.json",
            "%2e%2e/config.json",
            "..%2fconfig.json",
            "static/",
        ),
        *("watch.js/", "/etc/passwd", "checkpoints", "open_loop.png", "DATA.JSON"),
    ],
)
def test_there_is_no_other_path(ask, path):
    found = ask(path)
    assert found.status == 404 and found.body == b"there is no such page\n"
    assert found.headers["Content-Security-Policy"] and found.headers["Connection"] == "close"


def test_what_stands_behind_a_question_mark_is_ignored(ask):
    assert ask("data.json?x=/etc/passwd").json["name"] == "drama_catch"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(ask, method):
    found = ask("data.json", method=method)
    assert found.status == 405 and found.headers["Allow"] == "GET, HEAD"
    assert ask("data.json", method="BREW").status == 501


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("localhost", 200), ("LOCALHOST:80", 200), ("127.0.0.1:9", 200), ("[::1]:80", 200)),
        *(("127.8.9.1", 200), ("evil.example", 421), ("localhost.evil.example", 421), ("", 421)),
        *(("127.0.0.1.evil.example", 421), ("localhost@evil.example", 421), ("192.168.0.1", 421)),
        *(("evil.example#localhost", 421), ("x\\@localhost", 421), ("[::1", 421), ("0.0.0.0", 421)),
    ],
)
def test_names_that_others_point_here_are_refused(ask, host, status):
    assert ask("data.json", Host=host).status == status
    assert ask("", Host=host).status == status


def test_a_request_without_a_host_is_refused(ask):
    with socket.create_connection(("127.0.0.1", ask.port)) as connection:
        connection.sendall(b"GET /data.json HTTP/1.0\r\n\r\n")
        assert b" 421 " in connection.makefile("rb").readline()


def test_bodies_and_rubbish_end_the_connection(ask):
    connection = http.client.HTTPConnection("127.0.0.1", ask.port)
    connection.request("GET", "/", body=b"GET /data.json HTTP/1.1\r\n\r\n")
    found = connection.getresponse()
    assert found.status == 200 and found.headers["Connection"] == "close"
    with socket.create_connection(("127.0.0.1", ask.port)) as raw:
        raw.sendall(b"\x16\x03\x01 rubbish\r\n\r\n")
        said = raw.makefile("rb").read()
    assert b"refused" in said and b"rubbish" not in said
    assert ask("data.json").status == 200


def test_an_answer_that_is_known_is_not_sent_again(ask, tmp_path):
    first = ask("data.json")
    again = ask("data.json", If_None_Match=first.headers["ETag"])
    assert again.status == 304 and again.body == b"" and again.headers["Date"]
    append(tmp_path, [row(3, 0)])
    assert ask("data.json", If_None_Match=first.headers["ETag"]).status == 200


def test_a_run_that_grows_is_seen_to_grow(ask, tmp_path):
    assert ask().json["step"] == 0 and ask().json["state"] == "waiting"
    append(tmp_path, [row(5, i, model__loss=1.0) for i in (0, 1)])
    first = ask().json
    append(tmp_path, [row(9, i, model__kl=2.0) for i in (0, 1)], end='\n{"step": 11')
    second = ask().json
    assert (first["step"], second["step"]) == (5, 9)
    assert [len(one["returns"][0]["seeds"][0]["x"]) for one in (first, second)] == [1, 2]
    assert {m["name"] for m in second["metrics"]} - {m["name"] for m in first["metrics"]} == {
        "model/kl"
    }


def test_a_directory_that_vanishes_and_comes_back_is_followed(tmp_path, monkeypatch):
    run = tmp_path / "a#b ü<&>~"
    run.mkdir()
    write_config(run)
    append(run, [row(5, 0)])
    with served(run, monkeypatch) as ask:
        assert ask().json["step"] == 5 and ask().json["workdir"] == str(run)
        run.rename(tmp_path / "away")
        assert ask().json["step"] == 0 and ask().status == 200
        (tmp_path / "away").rename(run)
        assert ask().json["step"] == 5


def test_the_answer_is_bounded_however_long_the_run(ask, tmp_path):
    def rows(first, last):
        noise = {f"model/loss_{i}": 0.123456789 * i for i in range(10)}
        return [row(s, i, **noise) for s in range(first, last) for i in (0, 1)]

    append(tmp_path, rows(1, 301))
    short = len(ask().body)
    append(tmp_path, rows(301, 4001))
    assert 0.4 * short < len(ask().body) < 1.5 * short


def test_the_picture_is_served(ask, tmp_path):
    assert ask("open_loop.png").status == 404
    (tmp_path / "open_loop.png").write_bytes(b"\x89PNG\r\n\x1a\nx")
    found = ask("open_loop.png?" + ask().json["picture"]["tag"])
    assert found.headers["Content-Type"] == "image/png" and found.body.endswith(b"\nx")


def test_a_workdir_that_cannot_be_read_is_said(ask, monkeypatch):
    def away(self):
        raise OSError("stale file handle")

    monkeypatch.setattr(view.View, "_read_rows", away)
    assert ask().status == 503
    monkeypatch.undo()
    assert ask().status == 200


def test_several_may_ask_at_once(ask, tmp_path):
    append(tmp_path, [row(s, 0) for s in range(1, 500)])
    found = []
    threads = [threading.Thread(target=lambda: found.append(ask().json["step"])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [499] * 8


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_other_machines_are_warned_of(tmp_path, host, local):
    listening, said = server.Server(view.View(tmp_path), host, 0), []
    assert listening.is_local == local
    asked = threading.Thread(target=lambda: (time.sleep(0.2), listening.shutdown()))
    asked.start()
    server.serve(listening, said.append)
    asked.join()
    assert said[-1].startswith(f"watch at http://{host}:{listening.server_port}/ ")
    assert [line.startswith("warning: ") for line in said[:-1]] == [True] * (not local)


@pytest.mark.parametrize(
    ("host", "port"), [("no.such.host.invalid", 0), ("192.0.2.1", 0), ("a" * 99, 0)]
)
def test_an_address_that_is_not_ours_is_refused(tmp_path, host, port):
    with pytest.raises(ConfigError, match=f"--host={host}"):
        server.Server(view.View(tmp_path), host, port)


# --------------------------------------------------------------------------------- the command line


def command(*flags):
    return [sys.executable, "-m", "launch.watch", *flags]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--workdir is missing"),
        (["--workdir=no/such"], "--workdir=no/such is no directory; name that of a run"),
        (["--workdir=README.md"], "is no directory"),
        (["--workdir={sweep}", "--open_loop"], "--open_loop draws for one run"),
        (["--workdir={run}", "--port=70000"], "--port=70000"),
        (["--workdir={run}", "--port={taken}"], "cannot be listened on"),
        (["--workdir=~nobody-of-this-name/x"], "write ./~…"),
    ],
)
def test_what_users_get_wrong_is_one_sentence(tmp_path, flags, sentence):
    (tmp_path / "run").mkdir()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        names = {
            "sweep": tmp_path / "sweep",
            "run": tmp_path / "run",
            "taken": taken.getsockname()[1],
        }
        flags = [flag.format(**names) for flag in flags]
        done = subprocess.run(
            command(*flags), cwd=ROOT, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and sentence in last


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_asked_to_end_and_imports_no_jax(tmp_path, number):
    write_config(tmp_path, num_seeds=1)
    append(tmp_path, [row(5, 0)])
    before = sorted(path.name for path in tmp_path.iterdir())
    code = (
        "import atexit, runpy, signal, sys\n"
        # A shell's job in the background, as the tests may be, ignores it, and its children do.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.argv = ['watch', sys.argv[1]]\n"
        "atexit.register(lambda: print('jax' in sys.modules, 'matplotlib' in sys.modules))\n"
        "runpy.run_module('launch.watch', run_name='__main__')"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code, f"--workdir={tmp_path}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = run.stdout.readline().split()[2]
        with urllib.request.urlopen(url + "data.json", timeout=60) as found:
            assert b'"step":5' in found.read()
        run.send_signal(number)
        out, err = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 0 and err == "" and out.split() == ["False", "False"]
    assert sorted(path.name for path in tmp_path.iterdir()) == before
