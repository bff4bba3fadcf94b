"""The study of kills, with three of them."""

import pytest

from experiments.studies import kills


@pytest.mark.slow
def test_runs_that_are_killed_end_as_one_that_was_not(tmp_path):
    runs = kills.survive(tmp_path, kills=3, steps=400)
    assert sum(len(one.moments) for one in runs) == 3
    assert not any(one.differs for one in runs)


def test_what_differs_is_named(tmp_path):
    for name, text in (("one", "a"), ("other", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(text)
    assert kills.difference(tmp_path / "one", tmp_path / "other") == "metrics.jsonl"
