"""What the page is told of a directory, whatever lies in it."""

import json
import os
import socket
import sys
import time

import pytest

from mbrl_jax.runs import files, liveness, workdir
from mbrl_jax.watch import described, series, view
from mbrl_jax.watch.strips import Strips
from tests import small
from tests.watch.workdirs import append, row, write_config

STEPS = small.catch().steps


@pytest.fixture
def look(tmp_path, monkeypatch):
    """Look at the directory; the same view each time."""
    monkeypatch.setattr(view, "MIN_SECONDS", 0.0)
    one = view.View(tmp_path)
    return lambda: json.loads(one.body()[0])


def save_checkpoint(path, iteration, **meta):
    folder = path / "checkpoints" / str(iteration)
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"iteration": iteration, **meta}))


def test_a_run_is_described_by_its_configuration(tmp_path):
    write_config(tmp_path, 3, num_envs=2)
    run = described.describe(tmp_path)
    saved = workdir.read_config(tmp_path)
    assert (run.name, run.environment, run.steps) == ("drama_catch", "Catch-bsuite", 2 * STEPS)
    assert run.steps == saved.experiment.steps and run.groups == {"": [0, 1, 2]}
    write_config(tmp_path, stop_after=5)
    assert described.describe(tmp_path).steps == workdir.read_config(tmp_path).experiment.steps == 5


def test_settings_within_a_program_are_groups_of_its_members(tmp_path):
    write_config(tmp_path, 2)
    data = json.loads((tmp_path / "config.json").read_text())
    data |= {"sweep_inside": [["behaviour.entropy", [1e-4, 0.5]]], "first_seed": 4}
    (tmp_path / "config.json").write_text(json.dumps(data))
    groups = described.describe(tmp_path).groups
    assert groups == {"behaviour.entropy=0.0001": [4, 5], "behaviour.entropy=0.5": [6, 7]}
    members = workdir.read_config(tmp_path).members
    assert members.setting(2) == {"behaviour.entropy": 0.5}


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "3", '{"experiment": 3}', '{"experiment": {"phases": [{}]}}'),
        *("[" * 100_000, "\udcff", '{"experiment": {"phases": [{"iterations": 1e999}]}}'),
    ],
)
def test_a_damaged_configuration_is_said_and_the_rows_are_shown(tmp_path, look, text):
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    append(tmp_path, [row(10, 0), row(10, 1)])
    found = look()
    assert found["name"] == tmp_path.name and found["steps"] == 0 and found["step"] == 10
    assert "config.json cannot be read" in found["notes"][0]
    assert len(found["returns"][0]["seeds"]) == 2


def test_an_empty_directory_waits_for_rows(tmp_path, look):
    found = look()
    assert found["state"] == "waiting" and found["metrics"] == [] and found["picture"] is None
    assert found["name"] == tmp_path.name and found["notes"] == [] and found["step"] == 0
    write_config(tmp_path)
    found = look()
    assert found["state"] == "waiting" and found["name"] == "drama_catch"
    assert found["num_seeds"] == 2 and found["steps"] == STEPS


def test_the_state_is_that_of_the_process_that_holds_the_directory(tmp_path, look):
    write_config(tmp_path)
    assert look()["state"] == "waiting"
    with files.locked(tmp_path):
        found = look()
        assert found["state"] == "starting"
        assert found["process"] == f"process {os.getpid()} on {socket.gethostname()}"
        append(tmp_path, [row(1, 0), row(1, 1)])
        assert look()["state"] == "training"
        append(tmp_path, [row(STEPS, 0), row(STEPS, 1)])
        assert look()["state"] == "evaluating"
    found = look()
    assert found["state"] == "ended" and found["process"] == ""
    write_config(tmp_path, stop_after=STEPS - 1)
    assert look()["state"] == "ended"


def test_who_trains_is_found_without_taking_the_lock(tmp_path, monkeypatch):
    (tmp_path / "lock").write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    with files.locked(tmp_path):  # by a view that does not stand in the way of it
        assert liveness.trainer(tmp_path, None)
    ours = f"process 0 on {socket.gethostname()}"  # 0 is our group of processes, and it lives
    for text in (
        "",
        "process 999999999 on x",
        "process x on y",
        "process 1 on \0",
        "\xff\xfe",
        ours,
    ):
        (tmp_path / "lock").write_text(text)
        assert liveness.trainer(tmp_path, None) == ""
    (tmp_path / "lock").write_text(f"process 999999999 on {socket.gethostname()}")
    assert liveness.trainer(tmp_path, time.time()) == ""  # killed: its text stayed
    (tmp_path / "lock").write_text("process 1 on another-host")
    assert liveness.trainer(tmp_path, time.time()) == "process 1 on another-host"
    assert liveness.trainer(tmp_path, time.time() - 2 * liveness.SILENT_AFTER) == ""


def test_a_run_that_was_killed_has_stopped(tmp_path, look):
    write_config(tmp_path)
    append(tmp_path, [row(1, 0), row(1, 1)])
    (tmp_path / "lock").write_text(f"process 999999999 on {socket.gethostname()}\n")
    assert look()["state"] == "stopped"


def test_a_run_that_grows_goes_on_and_one_that_resumes_is_shown_anew(tmp_path, look):
    write_config(tmp_path)
    append(tmp_path, [row(10, 0), row(10, 1)], end='\n{"step": 20, ')
    assert look()["step"] == 10
    (tmp_path / "metrics.jsonl").unlink()
    append(tmp_path, [row(s, i, model__loss=s) for s in (5, 15) for i in (0, 1)])
    found = look()
    assert found["step"] == 15 and found["env_steps_of_metrics"] == [4, 14]
    (metric,) = (m for m in found["metrics"] if m["name"] == "model/loss")
    assert metric["mean"] == [5, 15]


def test_a_long_run_is_read_in_pieces_and_shown_meanwhile(tmp_path, look, monkeypatch):
    write_config(tmp_path)
    append(tmp_path, [row(s, 0) for s in range(1, STEPS + 1)])
    monkeypatch.setattr(series, "_BLOCK", 500)
    monkeypatch.setattr(view, "MAX_SECONDS", 0.0)
    found = [look()]
    while found[-1]["state"] == "reading":
        found.append(look())
    shares, steps = [one["read"] for one in found], [one["step"] for one in found]
    assert len(found) > 3 and shares == sorted(set(shares)) and steps == sorted(set(steps))
    assert 0 < shares[0] < 0.5 and shares[-1] == 1
    while found[-1]["step"] < STEPS:
        found.append(look())
    assert found[-1]["state"] == "ended"
    assert found[-1]["returns"][0]["seeds"][0]["x"] == list(range(STEPS))


def test_damaged_lines_are_counted(tmp_path, look):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "seed": 0}\nrubbish\n\n{"step": 2}\n')
    assert look()["notes"] == ["damaged lines of metrics.jsonl that are left out: 3"]


def test_frozen_seeds_have_their_cause_from_the_checkpoint(tmp_path, look):
    write_config(tmp_path, num_envs=2)
    append(tmp_path, [row(s, i, agent__frozen=float(i * s > 20)) for s in (20, 40) for i in (0, 1)])
    assert look()["frozen"] == [{"seed": 1, "step": 40, "metric": ""}]
    save_checkpoint(tmp_path, 9, frozen={})
    save_checkpoint(tmp_path, 20, frozen={"1": {"step": 38, "metric": "model/reward"}})
    (tmp_path / "checkpoints" / "30.tmp").mkdir()
    (tmp_path / "checkpoints" / "refused_40").mkdir()
    found = look()
    assert found["frozen"] == [{"seed": 1, "step": 40, "metric": "model/reward"}]
    assert found["checkpoint"]["step"] == 40  # of iteration 20, with two environments


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"frozen": 3}', '{"frozen": {"x": 1}}'])
def test_a_damaged_checkpoint_is_nothing_or_has_no_causes(tmp_path, look, text):
    save_checkpoint(tmp_path, 9)
    (tmp_path / "checkpoints" / "9" / "meta.json").write_text(text)
    assert look()["frozen"] == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"mean": []}', '{"mean": [1], "step": "x"}'])
def test_the_evaluation_is_shown_at_the_end(tmp_path, look, text):
    write_config(tmp_path)
    good = json.dumps({"step": STEPS, "episodes": 7, "mean": [1.0, 0.5], "returns": []})
    (tmp_path / "evaluation.json").write_text(good)
    append(tmp_path, [row(10, 0)])
    assert look()["evaluation"] is None  # it is of an earlier end
    append(tmp_path, [row(STEPS, 0)])
    assert look()["evaluation"] == {"step": STEPS, "episodes": 7, "mean": 0.75}
    (tmp_path / "evaluation.json").write_text(text)
    assert look()["evaluation"] is None


def test_the_time_left_follows_from_the_present_speed(tmp_path, look):
    write_config(tmp_path)
    phases = workdir.read_config(tmp_path).experiment.phases
    random_play = phases[0].iterations
    assert described.describe(tmp_path).learns_from == random_play < STEPS - 4
    clock, found = time.time() - 1000, []
    with files.locked(tmp_path):
        for i, step in enumerate((random_play - 1, random_play, random_play + 1)):
            append(tmp_path, [row(step, 0), row(step, 1)])
            os.utime(tmp_path / "metrics.jsonl", (clock, clock + 10 * i))
            found.append(look()["speed"])
    assert found[0] == {"recent": None, "average": None, "left": None}
    # How long learning takes is not known from random play.
    assert found[1] == {"recent": 0.2, "average": 0.2, "left": None}
    assert found[2]["left"] == pytest.approx(10 * (STEPS - random_play - 1))
    assert look()["speed"]["left"] is None  # nobody trains now


def test_names_of_others_come_without_control_characters(tmp_path, look):
    write_config(tmp_path, name="a\x1b[31m\u202e<b>")
    append(tmp_path, [row(1, 0, **{"x\x07y": 1})])
    found = look()
    assert found["name"] == r"a\x1b[31m\u202e<b>"
    assert r"x\x07y" in [metric["name"] for metric in found["metrics"]]


# --------------------------------------------------------------------------------------- pictures

PNG = b"\x89PNG\r\n\x1a\n"


def test_the_newest_picture_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(view, "MIN_SECONDS", 0.0)
    drawing = Strips(tmp_path, ("never started",))
    one = view.View(tmp_path, drawing)
    look = lambda: json.loads(one.body()[0])["picture"]
    assert look() == {"tag": None, "error": "", "drawing": False}
    drawing.newest = view.Strip(PNG + b"strip", 3, 1000.0)
    write_config(tmp_path, num_envs=2)
    found = look()
    assert found["step"] == 6 and one.picture() == (PNG + b"strip", found["tag"])
    path = tmp_path / "open_loop.png"
    path.write_bytes(PNG + b"end")  # now
    assert look()["step"] is None and one.picture()[0] == PNG + b"end"
    drawing.newest = view.Strip(PNG + b"later", 9, time.time() + 10)  # the run goes on
    assert look()["step"] == 18 and one.picture()[0] == PNG + b"later"


@pytest.mark.parametrize("data", [b"", b"<svg/>", PNG + bytes(100)])
def test_only_a_png_of_reasonable_size_is_a_picture(tmp_path, monkeypatch, data):
    monkeypatch.setattr(view, "_LARGEST_PICTURE", 50)
    (tmp_path / "open_loop.png").write_bytes(data)
    assert view.View(tmp_path).picture() is None


def strip_of(workdir, code, rest=0.0):
    strips = Strips(workdir, (sys.executable, "-c", code), rest)
    strips.start()
    return strips


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


DRAW = """
import os, sys
print("what goes wrong")
if not os.path.exists(MENDED):
    sys.exit("why it does")
said = f"{os.getpriority(os.PRIO_PROCESS, 0)} {os.environ['JAX_PLATFORMS']}"
with open(sys.argv[1].removeprefix("--out="), "wb") as file:
    file.write(bytes([0x89]) + b"PNG\\r\\n\\x1a\\n" + said.encode())
"""


def test_a_process_of_low_priority_draws_each_new_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("mbrl_jax.watch.strips._POLL", 0.05)
    strips = strip_of(tmp_path, DRAW.replace("MENDED", repr(str(tmp_path / "x"))))
    time.sleep(0.3)
    assert strips.newest is None and not strips.error  # there is no checkpoint
    save_checkpoint(tmp_path, 5)
    wait_until(lambda: strips.error)
    assert strips.error == "why it does" and strips.newest is None
    (tmp_path / "x").touch()
    time.sleep(0.3)
    assert strips.error  # a checkpoint is tried once
    save_checkpoint(tmp_path, 10)
    wait_until(lambda: strips.newest)
    assert strips.newest.png == PNG + b"19 cpu" and strips.newest.iteration == 10
    assert not strips.error
    strips.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "x"]


def test_a_process_that_draws_ends_with_the_watcher(tmp_path, monkeypatch):
    monkeypatch.setattr("mbrl_jax.watch.strips._POLL", 0.05)
    save_checkpoint(tmp_path, 5)
    write = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"
    code = f"import os, time; {write}; time.sleep(600)"
    strips = strip_of(tmp_path, code)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    began = time.monotonic()
    strips.close()
    assert time.monotonic() - began < 9
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_process_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("mbrl_jax.watch.strips._POLL", 0.05)
    monkeypatch.setattr("mbrl_jax.watch.strips.LIMIT", 0.5)
    save_checkpoint(tmp_path, 5)
    strips = strip_of(tmp_path, "import time; time.sleep(600)")
    wait_until(lambda: strips.error)
    assert "took more than" in strips.error
    strips.close()


def test_a_huge_product_of_settings_costs_nothing(tmp_path):
    from mbrl_jax.watch import described

    inside = [[f"behaviour.x{i}", list(range(10))] for i in range(25)]
    found = described._groups(inside, 3, 0)
    assert len(found) == 6 and list(found.values())[1] == [3, 4, 5]
