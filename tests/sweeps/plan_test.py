"""Plans of sweeps: grids, files, names, packing, the manifest, and what a status is read from."""

import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.loops import seeds
from mbrl_jax.sweeps import plan, status

COMMON = plan.Common("drama_catch", num_seeds=4)
GRU, MAMBA = ("model.core=gru",), ("model.core=mamba2",)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("mamba2,gru", ["mamba2", "gru"]),
        (" 1e-4 , 3e-4", ["1e-4", "3e-4"]),
        ("[32,64],[64]", ["[32,64]", "[64]"]),
        ("(1,(2,3)),4", ["(1,(2,3))", "4"]),
        ("'a,b',\"c d\"", ["a,b", "c d"]),
    ],
)
def test_values_are_split_outside_brackets_and_quotes(text, values):
    assert plan.split_values(text) == values


@pytest.mark.parametrize("text", ["model.core", "model.core=", "=gru", "a=1,,2", "a=[1,2"])
def test_a_grid_that_cannot_be_read_is_refused(text):
    with pytest.raises(ConfigError, match="cannot understand|does not close"):
        plan.parse_grid(text)


def test_a_file_has_a_member_on_each_line():
    text = (
        "# cores and rates\n\n"
        "model.core=gru behaviour.entropy=1e-3   # the small one\n"
        "  encoder.layers=[32,64] name='two words'\n"
    )
    assert plan.parse_lines(text) == [
        ("model.core=gru", "behaviour.entropy=1e-3"),
        ("encoder.layers=[32,64]", "name=two words"),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("a=1\nmodel.core gru", "line 2"), ("a='b", "line 1"), ("# nothing\n", "names no member")],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_line(text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        plan.parse_lines(text)


def test_the_product_of_lines_and_grids_is_in_order():
    found = plan.configurations([["a=1", "a=2"], ["b=3"]], [("c=4",), ("c=5",)])
    assert found == [
        ("c=4", "a=1", "b=3"),
        ("c=4", "a=2", "b=3"),
        ("c=5", "a=1", "b=3"),
        ("c=5", "a=2", "b=3"),
    ]
    assert plan.configurations([]) == [()]


def test_what_is_set_or_listed_twice_is_refused():
    with pytest.raises(ConfigError, match="a is set twice"):
        plan.configurations([["a=1"]], [("a=2",)])
    with pytest.raises(ConfigError, match="listed twice"):
        plan.configurations([["a=1", "a=1"]])


def test_names_say_the_settings_and_are_safe_unique_and_stable():
    assert plan.member_name(("model.core=gru", " gamma = 0.9")) == "model.core=gru,gamma=0.9"
    assert plan.member_name(()) == "default"
    assert plan.member_name(GRU, (4, 2)) == "model.core=gru,seeds=4-5"
    odd = ["a=x y", "a=x/y", "a=../y", "a=x,y", "a=x=y", "a=ü", "a=" + "9" * 300, "a=" + "9" * 301]
    names = [plan.member_name((setting,)) for setting in odd]
    assert len(set(names)) == len(odd)
    for name in names:
        assert len(name) < 200 and "/" not in name and " " not in name and name.isascii()
    # A name is a promise to workdirs that exist.
    assert names[0] == "a=x-y-" + plan.hashlib.sha256(b"a=x y").hexdigest()[:8]


@pytest.mark.parametrize("num_seeds", [1, 2, 7, 12, 64])
@pytest.mark.parametrize("fit", [1, 3, 5, 64, 100])
def test_packs_hold_every_seed_once_in_as_few_programs_of_two_sizes_as_can_be(num_seeds, fit):
    packs = plan.pack(num_seeds, fit)
    lanes = [lane for first, count in packs for lane in range(first, first + count)]
    assert lanes == list(range(num_seeds))
    sizes = {count for _, count in packs}
    assert max(sizes) <= fit and max(sizes) - min(sizes) <= 1
    assert len(packs) == -(-num_seeds // fit)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="not one seed fits"):
        plan.pack(4, 0)
    with pytest.raises(ConfigError, match="must be at least 1"):
        plan.pack(0, 4)


def test_a_lane_does_not_depend_on_the_packing():
    whole = jax.random.key_data(seeds.seed_keys(7, 10))
    for fit in (1, 3, 4, 10):
        parts = [
            jax.random.key_data(seeds.seed_keys(7, count, first))
            for first, count in plan.pack(10, fit)
        ]
        np.testing.assert_array_equal(whole, np.concatenate(parts))


def _members(common=COMMON, steps=100, settings=(GRU, MAMBA)):
    return plan.plan_members(common, dict.fromkeys(settings, (steps, steps // 2)))


def test_members_take_several_programs_where_seeds_do_not_fit():
    whole = _members()
    assert [m.name for m in whole] == ["model.core=gru", "model.core=mamba2"]
    assert [(m.first_seed, m.num_seeds) for m in whole] == [(0, 4)] * 2
    packed = _members(COMMON._replace(seeds_per_program=3), settings=(GRU,))
    assert [m.name for m in packed] == ["model.core=gru,seeds=0-1", "model.core=gru,seeds=2-3"]


def test_the_command_passes_everything_on(tmp_path):
    common = plan.Common(
        "drama_catch", ("log_every=20",), 5, 4, 2, ("behaviour.entropy=1e-3,1e-2",), True, 60
    )
    member = _members(common, settings=(GRU,))[1]
    assert plan.train_command("python", common, member, tmp_path) == [
        *("python", "-m", "launch.train", "--experiment=drama_catch", f"--workdir={tmp_path}"),
        *("--seed=5", "--num_seeds=2", "--first_seed=2", "--steps=60", "--debug"),
        *("--set=log_every=20", "--set=model.core=gru"),
        "--sweep_inside=behaviour.entropy=1e-3,1e-2",
    ]


def test_the_manifest_goes_on_and_takes_more_members_and_steps(tmp_path):
    first = plan.merge(tmp_path, None, COMMON, _members(settings=(GRU,)))
    plan.write_manifest(tmp_path, first)
    again = plan.read_manifest(tmp_path)
    assert again == first
    assert plan.members_of(again) == _members(settings=(GRU,))
    assert plan.merge(tmp_path, again, COMMON, _members(settings=(GRU,))) == first
    more = plan.merge(tmp_path, again, COMMON, _members(settings=(MAMBA,)))
    assert [m.name for m in plan.members_of(more)] == ["model.core=gru", "model.core=mamba2"]
    longer = COMMON._replace(steps=200)
    grown = plan.merge(tmp_path, more, longer, _members(longer, 200, (GRU,)))
    assert [m.steps for m in plan.members_of(grown)] == [200, 100]


def test_commands_that_add_members_at_once_lose_none(tmp_path):
    settings = [(f"gamma=0.{i}",) for i in range(1, 9)]
    with ThreadPoolExecutor(len(settings)) as pool:
        add = lambda one: plan.add_members(tmp_path / "new", COMMON, _members(settings=(one,)))
        list(pool.map(add, settings))
    found = plan.members_of(plan.read_manifest(tmp_path / "new"))
    assert sorted(member.settings for member in found) == settings
    (tmp_path / "a file").touch()
    with pytest.raises(ConfigError, match="a file/x cannot be written"):
        plan.add_members(tmp_path / "a file" / "x", COMMON, _members())


def test_another_sweep_in_the_same_root_is_refused_with_the_difference(tmp_path):
    old = plan.merge(tmp_path, None, COMMON, _members())
    other = COMMON._replace(settings=("gamma=0.9",), num_seeds=8)
    with pytest.raises(ConfigError, match="--set: none -> gamma=0.9; --num_seeds: 4 -> 8"):
        plan.merge(tmp_path, old, other, _members(other))
    with pytest.raises(ConfigError, match="was to make 100 steps, and now 50"):
        plan.merge(tmp_path, old, COMMON, _members(steps=50))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"schema_version": 1}',
        '{"schema_version": 99, "common": {}, "members": {}}',
        '{"schema_version": 1, "common": {"experiment": "x"}, "members": {"../../etc": {'
        '"settings": [], "first_seed": 0, "num_seeds": 1, "steps": 1, "iterations": 1}}}',
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, text):
    (tmp_path / plan.MANIFEST).write_text(text)
    with pytest.raises(ConfigError, match="is not the manifest|has schema_version 99"):
        plan.read_manifest(tmp_path)


def test_a_root_without_manifest_has_none(tmp_path):
    assert plan.read_manifest(tmp_path) is None


# ------------------------------------------------------------------------------------------ status


MEMBER = plan.Member("m", GRU, 0, 2, steps=200, iterations=100)


def _status(root):
    return status.member_status(root, MEMBER)


def _rows(workdir, *rows):
    lines = [
        json.dumps({"step": step, "seed": seed, "episode/return": value})
        for step, seed, value in rows
    ]
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 9')


def test_a_member_without_workdir_is_not_begun(tmp_path):
    assert _status(tmp_path) == status.Status("m", "not begun", 0, 200, None, None, 0, "")


def test_a_running_member_shows_its_step_return_and_checkpoint(tmp_path):
    workdir = tmp_path / "m"
    status.write_record(workdir, state="running", attempt=2)
    (workdir / "checkpoints" / "40").mkdir(parents=True)
    _rows(workdir, (80, 0, 0.5), (80, 1, 1.0), (90, 0, None), (90, 1, 2.0))
    assert _status(tmp_path) == status.Status("m", "running", 90, 200, 1.25, 80, 2, "")


def test_a_process_that_is_gone_without_a_word_has_failed(tmp_path):
    workdir = tmp_path / "m"
    status.write_record(workdir, state="running")
    record = json.loads((workdir / status.RECORD).read_text())
    for changes in ({"pid": 2**22 + 1}, {"host": "elsewhere"}):
        (workdir / status.RECORD).write_text(json.dumps(record | changes))
        if "host" in changes:  # its processes cannot be seen from here: only its age tells
            assert _status(tmp_path).state == "running"
            old = time.time() - 2 * status.STALE_AFTER
            os.utime(workdir / status.RECORD, (old, old))
        assert _status(tmp_path).state == "failed"
        assert "gone without a word" in _status(tmp_path).error
    assert record["host"] == socket.gethostname() and record["pid"] == os.getpid()


def test_a_failed_member_shows_the_error_of_its_last_attempt_only(tmp_path, capsys):
    workdir = tmp_path / "m"
    status.write_record(workdir, state="failed", attempt=2)
    log = workdir / status.LOG
    log.write_text(
        "=== attempt 1\nerror: the first\n=== attempt 2\nTraceback (most recent call last):\n"
        '  File "x.py", line 1\nmodule.OddError: a [red]bad[/red] \x1b[31mthing\n\n'
    )
    assert _status(tmp_path).error == "module.OddError: a [red]bad[/red] [31mthing"
    status.print_status(tmp_path, [_status(tmp_path)])
    assert "m: module.OddError: a [red]bad[/red] [31mthing\n" in capsys.readouterr().out
    log.write_text("=== attempt 1\nerror: the first\n=== attempt 2\n")
    assert _status(tmp_path).error == ""


def test_done_holds_for_the_steps_that_were_asked_for(tmp_path):
    status.write_record(tmp_path / "m", state="done", steps=200)
    assert _status(tmp_path).state == "done" and status.is_done(tmp_path, MEMBER)
    more = MEMBER._replace(steps=400)
    assert status.member_status(tmp_path, more).state == "preempted"
    assert not status.is_done(tmp_path, more)


@pytest.mark.parametrize("text", ["", "[]", '{"state": "fine"}', '{"state": "running"}', "\xff"])
def test_a_damaged_record_does_not_break_the_table(tmp_path, text, capsys):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / status.RECORD).write_text(text, encoding="latin-1")
    row = _status(tmp_path)
    assert row.state in ("not begun", "failed")
    status.print_status(tmp_path, [row])
    assert f"1 members: 1 {row.state}" in capsys.readouterr().out
