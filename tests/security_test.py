"""No file and no flag is run as code, and names of others are shown as they are."""

import ast
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import cbook

from launch import flags as launch_flags
from mbrl_jax.errors import ConfigError
from mbrl_jax.evaluate import plots
from mbrl_jax.experiment import config
from mbrl_jax.experiment.members import Members
from mbrl_jax.loops.steps import Evaluation
from mbrl_jax.runs import workdir
from mbrl_jax.runs.shown import shown
from mbrl_jax.train import tables
from mbrl_jax.train.run import Result
from tests import small

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(p for f in ("mbrl_jax", "launch", "experiments") for p in (ROOT / f).rglob("*.py"))
# Whatever these read can run code.
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib", "runpy"}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {
    *("os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    *("pickle.load", "pickle.loads", "pd.read_pickle", "pandas.read_pickle"),
}
# Its unpickler knows the names of tensors and nothing else: `test_the_one_unpickler …` below.
READER = ROOT / "mbrl_jax" / "world_models" / "drama" / "published_files.py"


def dangers(tree: ast.AST) -> list[str]:
    """What in a syntax tree could run what it reads."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            found += _dangers_of_call(node)
    return found


def _dangers_of_call(node: ast.Call) -> list[str]:
    called = ast.unparse(node.func)
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    bad = called in CALLS | ATTRIBUTES
    bad |= called in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False"
    bad |= called == "torch.load" and given.get("weights_only") != "True"
    bad |= given.get("shell", "False") != "False"
    return [called] if bad else []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_that_is_read_is_run(path):
    found = dangers(ast.parse(path.read_text()))
    assert found == (["pickle"] if path == READER else [])


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from cloudpickle import loads",
        "eval(text)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "torch.load(path)",
        "yaml.load(file)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
    ],
)
def test_the_rule_would_find_it(text):
    assert dangers(ast.parse(text))


def test_the_one_unpickler_chooses_by_itself_what_it_makes():
    tree = ast.parse(READER.read_text())
    uses = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    uses = {use for use in uses if use.startswith("pickle.")}
    assert uses == {"pickle.Unpickler", "pickle.UnpicklingError"}
    (reader,) = (
        node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and "pickle.Unpickler" in map(ast.unparse, node.bases)
    )
    own = {node.name for node in reader.body if isinstance(node, ast.FunctionDef)}
    assert {"find_class", "persistent_load"} <= own
    ways = ast.unparse(next(n for n in reader.body if getattr(n, "name", "") == "find_class"))
    assert "super()" not in ways and "import" not in ways and "getattr" not in ways


@pytest.mark.parametrize(
    "tag",
    [
        *("builtins:eval", "os:system", "subprocess:Popen", "functools:partial", "sys:modules"),
        *(
            "mbrl_jax.train.run:run",
            "mbrl_jax.types:Timestep",
            "mbrl_jax.experiment.config:sys.modules",
        ),
        *(
            "mbrl_jax.world_models.drama.published_files:pickle.Unpickler",
            "mbrl_jax.agent:Config.validate",
        ),
        *("mbrl_jax.agent:Config.__class__", "mbrl_jax/../evil:Config", "mbrl_jax.:Config"),
        *("antigravity:fly", "this:s", ":Config", "", "a:b:c", "\0:\0"),
    ],
)
def test_a_type_in_a_configuration_makes_nothing_else(tag):
    before = set(sys.modules)
    with pytest.raises(ConfigError):
        config.from_json({"schema_version": config.SCHEMA_VERSION, "type": tag, "x": 1})
    assert all(name.startswith("mbrl_jax") for name in set(sys.modules) - before)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '{"experiment": 3}',
        '{"experiment": {}, "seed": 0, "num_seeds": 1}',
        "[" * 200_000,
        "\udcff",
    ],
)
def test_a_damaged_configuration_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=r"config\.json is not|schema_version"):
        workdir.read_config(tmp_path)


def test_numbers_in_a_configuration_are_not_text_to_be_run(tmp_path):
    data = {"experiment": config.to_json(small.catch()), "seed": 0, "num_seeds": 1}
    data |= {"first_seed": 0, "sweep_inside": []}
    data["experiment"]["num_envs"] = "__import__('os').getcwd()"
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"num_envs: expected an integer, got \"__import__"):
        workdir.read_config(tmp_path)


# ------------------------------------------------------------------------------------------- shown

NAMES = [
    "[red]x[/red]",
    "[/]",
    "a :smile: b",
    "$x^{$",
    "ü 漢",
    "a\x1b]0;owned\x07b",
    "a\u202eb\x9bc",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are(name, capsys):
    returns = np.ones((1, 2), np.float32)
    played = Evaluation(returns, np.ones((1, 2), np.int32), np.ones((1, 2), bool))
    tables.print_table(Result([1.0], played, [Path(f"{name}.png")], [-1], {}, Members(), 1), name)
    tables.print_evaluation(played, small.catch(), name, "clean")
    tables.print_findings([("ok", name, name)], name)
    with pytest.raises(SystemExit):
        launch_flags.fail(f"no {name}")
    out, err = capsys.readouterr()
    assert out.count(shown(name)) >= 5 and shown(name) in err
    assert all(c.isprintable() for c in (out + err).replace("\n", ""))


def test_what_a_terminal_would_obey_is_written_out():
    assert shown("a\x1b[31m\u202e\udcff ü") == r"a\x1b[31m\u202e\udcff ü"


@pytest.mark.parametrize("name", NAMES[:4])
def test_titles_are_drawn_as_they_are(tmp_path, name):
    assert not cbook.is_math_text(plots.plain(name))
    assert plots.plot_learning_curve([], tmp_path / "curve.png", name).stat().st_size > 0
