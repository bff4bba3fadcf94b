"""A directory on a file system without locks has one owner all the same."""

import errno
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.runs import files, liveness, owner


@pytest.fixture(autouse=True)
def no_locks(monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    files._tell_of_no_locks.cache_clear()


def test_a_second_process_is_kept_out_and_the_reason_is_said_once(tmp_path, capsys):
    taken = pytest.raises(
        ConfigError, match=f"trained by process {os.getpid()} on .*remove .*owner"
    )
    with files.locked(tmp_path), taken, files.locked(tmp_path):
        pass
    with files.locked(tmp_path):
        assert (tmp_path / owner.OWNER).exists()
    assert not (tmp_path / owner.OWNER).exists()
    assert capsys.readouterr().err.count("has no locks (No locks available)") == 1


@pytest.mark.parametrize("silent", [False, True])
def test_the_owner_on_another_machine_lives_while_it_gives_signs(tmp_path, silent):
    (tmp_path / owner.OWNER).write_text("process 7 on another-node")
    if silent:
        then = time.time() - liveness.SILENT_AFTER - 1
        os.utime(tmp_path / owner.OWNER, (then, then))
        with files.locked(tmp_path):
            assert f"process {os.getpid()} on" in (tmp_path / owner.OWNER).read_text()
        return
    with pytest.raises(ConfigError, match="process 7 on another-node"), files.locked(tmp_path):
        pass
    assert (tmp_path / owner.OWNER).read_text() == "process 7 on another-node"


def test_what_a_crash_on_this_machine_left_is_taken_over(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / owner.OWNER).write_text(f"process {ended.pid} on {socket.gethostname()}")
    with files.locked(tmp_path):
        pass


def test_who_waits_goes_on_when_the_owner_has_ended(tmp_path):
    path = tmp_path / owner.OWNER
    path.write_text("process 7 on another-node")
    threading.Timer(0.2, path.unlink).start()
    with files.locked(tmp_path, wait=True):
        assert str(os.getpid()) in path.read_text()


def test_the_owner_gives_signs(tmp_path, monkeypatch):
    monkeypatch.setattr(owner, "_SIGN_EVERY", 0.01)
    with files.locked(tmp_path):
        os.utime(tmp_path / owner.OWNER, (0, 0))
        for _ in range(500):
            if (tmp_path / owner.OWNER).stat().st_mtime > 0:
                break
            time.sleep(0.01)
        assert (tmp_path / owner.OWNER).stat().st_mtime > 0
