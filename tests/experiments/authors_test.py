"""Our side against numbers of the authors' own code, which are kept; the study's table, sentences.

Neither PyTorch nor the authors' code is needed here.
"""

import subprocess
import sys

import numpy as np
import pytest

from experiments.studies.authors import checkout, golden, kernel_cases, problem, replayed, table
from mbrl_jax.errors import ConfigError


def _numbers(cases, name):
    """Our side of all cases of that name."""
    found = {}
    for case in cases:
        if case.name == name:
            found |= case.ours()
    return found


def _check(expected, side):
    far = {n: x for n, x in golden.differences(expected, side).items() if x > golden.TOLERANCE}
    assert not far


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("name", golden.NAMES["drama"])
def test_drama_gives_the_numbers_of_its_authors(name):
    kept = golden.read("drama")
    cases = replayed.golden_cases(golden.Stored(kept["shapes"]))
    _check(kept["cases"][name], _numbers(cases, name))


@pytest.mark.parametrize("name", golden.NAMES["mamba"])
def test_kernels_give_the_numbers_of_their_authors(name):
    cases = kernel_cases.golden_cases(golden.Stored({}))
    _check(golden.read("mamba")["cases"][name], _numbers(cases, name))


def test_golden_numbers_notice_a_small_error():
    side = {"gradients/first": {"['actor']['bias']": np.ones(9)}, "losses/actor": np.arange(3.0)}
    kept = golden.digest(side)
    assert set(golden.differences(kept, side).values()) == {0.0}
    side["gradients/first"]["['actor']['bias']"][3] *= 1.01
    far = golden.differences(kept, side)
    assert far["gradients/first"] > golden.TOLERANCE > far["losses/actor"]


# ------------------------------------------------------------------------------------- the table


def _lines(ours, narrow, wide, declared=""):
    case = table.Case("one", lambda is_wide: wide if is_wide else narrow, lambda: ours, declared)
    return list(table.compare(case))


def test_a_line_is_within_three_times_the_authors_own_noise():
    wide = {"losses/reward": np.array([1.0])}
    for error, verdict in ((2.9e-5, "within"), (3.1e-5, "beyond"), (np.nan, "beyond")):
        narrow, ours = ({"losses/reward": np.array([1.0 + x])} for x in (1e-5, error))
        (line,) = _lines(ours, narrow, wide)
        assert line.verdict == verdict
    assert _lines(ours, narrow, wide, "why")[0].verdict == "declared: why"


def test_luck_of_the_authors_is_no_noise():
    one = {"losses/reward": np.array([1.0])}
    (line,) = _lines({"losses/reward": np.array([1.0 + 1e-6])}, one, one)
    assert line.noise == 0.0 and line.verdict == "within"


def test_tensors_by_name_give_the_worst_and_the_median_of_the_reference():
    wide = {"gradients/all": {"a": np.ones(2), "b": np.ones(2), "c": np.ones(2)}}
    ours = {"gradients/all": {"a": np.ones(2), "b": np.full(2, 1.1), "c": np.ones(2), "d": 0}}
    worst, median = _lines(ours, ours, wide)
    assert worst.name.endswith("worst of 3") and worst.ours == pytest.approx(0.1)
    assert median.ours == 0.0


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\) was found where \(3,\)"):
        table.relative_error(np.ones(2), np.ones(3))


def test_a_tensor_depends_on_its_name_and_seed_alone():
    one = problem.weights({"a.weight": (3, 2), "b.bias": (4,)}, seed=1)
    other = problem.weights({"b.bias": (4,)}, seed=1)
    np.testing.assert_array_equal(one["b.bias"], other["b.bias"])
    assert (problem.weights({"b.bias": (4,)}, seed=2)["b.bias"] != one["b.bias"]).all()


# --------------------------------------------------------------------------------- the checkout


def _checkout(folder):
    """A repository with Drama's files in it, and a commit of its own."""
    for file in checkout.KNOWN[0].files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("")
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", folder, *command], check=True)


def test_a_missing_or_other_checkout_gets_a_sentence(tmp_path):
    for path, sentence in (
        (None, "--checkout=PATH is needed"),
        (str(tmp_path / "nowhere"), "there is no such folder"),
        (str(tmp_path), "is no checkout of"),
    ):
        with pytest.raises(ConfigError, match=sentence) as error:
            checkout.recognise(path)
        assert "git clone https://github.com/realwenlongwang/drama" in str(error.value)


def test_another_commit_gets_a_sentence(tmp_path):
    _checkout(tmp_path)
    with pytest.raises(ConfigError, match=f"git -C {tmp_path} checkout e7b4041"):
        checkout.recognise(str(tmp_path))


def test_changed_files_get_a_sentence(tmp_path, monkeypatch):
    _checkout(tmp_path)
    found = subprocess.run(["git", "-C", tmp_path, "rev-parse", "HEAD"], capture_output=True)
    own = checkout.KNOWN[0]._replace(commit=found.stdout.decode()[:7])
    monkeypatch.setattr(checkout, "KNOWN", (own,))
    assert checkout.recognise(str(tmp_path)) == own
    (tmp_path / "agents.py").write_text("print()")
    with pytest.raises(ConfigError, match="were changed"):
        checkout.recognise(str(tmp_path))


def test_a_folder_without_git_gets_a_sentence(tmp_path, monkeypatch):
    _checkout(tmp_path)
    (tmp_path / ".git").rename(tmp_path / "git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ConfigError, match="git tells no commit"):
        checkout.recognise(str(tmp_path))


def test_missing_torch_gets_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(checkout.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="torch.*bench"):
        checkout.require_torch()
