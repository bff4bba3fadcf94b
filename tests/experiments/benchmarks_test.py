"""The benchmarks run at tiny sizes, and PyTorch's side does the same work as ours."""

import dataclasses
import math
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import __main__ as command
from experiments.benchmarks import (
    convolutions,
    host,
    kernels,
    published,
    published_jax,
    scaling,
    seeds,
    shell,
)
from mbrl_jax.behaviours import actor_critic
from mbrl_jax.types import Prediction, bind
from tests.experiments.torch_sides import assert_close, assert_gradients_close, model_uniforms


@pytest.fixture(scope="module")
def needs_torch():
    """Named before `problem`, which takes long and is for nothing without torch."""
    pytest.importorskip("torch")


@pytest.fixture(scope="module", params=["drama", "storm"])
def problem(request):
    sizes = published.sizes_of(request.param, small=True)
    if request.param == "storm":  # each side drops out what it draws
        core = dataclasses.replace(sizes.model.core, dropout=0.0)
        sizes = dataclasses.replace(sizes, model=dataclasses.replace(sizes.model, core=core))
    return published_jax.make_problem(sizes)


@pytest.fixture(scope="module")
def sides(problem):
    """(torch model, torch behaviour) with the weights of `problem`."""
    pytest.importorskip("torch")
    from experiments.benchmarks.pytorch import published_torch

    return published_torch.make_nets(problem)


def test_parameters_are_as_many_as_published():
    drama, storm = published.sizes_of("drama"), published.sizes_of("storm")
    # Specification 7.1; STORM's counted by hand.
    cases = ((drama, 18, 7_161_603), (drama, 6, 7_155_459), (storm, 6, 16_507_011))
    for sizes, actions, count in cases:
        spec = dataclasses.replace(sizes, num_actions=actions).spec
        state = jax.eval_shape(sizes.model.make(spec).init, jax.random.key(0))
        assert sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)) == count
        torch = pytest.importorskip("torch")
        from experiments.benchmarks.pytorch import torch_drama

        with torch.device("meta"):
            model = torch_drama.WorldModel(sizes.model, actions)
        assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.slow  # half a minute of tracing at published sizes
def test_every_part_that_is_timed_can_be_traced():
    """None of them is a function of the package, whose signatures may change."""
    problem = published_jax.make_problem(published.small_sizes())
    for parts in (published_jax.world_model_parts, published_jax.behaviour_parts):
        for function, args in parts(problem).values():
            assert jax.tree.leaves(jax.eval_shape(function, *args))


def test_torch_world_model_has_our_losses_and_gradients(needs_torch, problem, sides, quick_compile):
    import torch

    from experiments.benchmarks.pytorch import torch_copy, torch_drama

    model, batch = sides[0], torch_copy.to_batch(problem.batch)
    state, config = problem.model_state, problem.sizes.model
    gradient = jax.jit(jax.value_and_grad(problem.model.loss, has_aux=True))
    (_, (entries, stats, metrics)), grads = gradient(
        state.params, state.stats, problem.key, problem.batch
    )
    windows, rows = problem.batch.timestep.reward.shape
    seen = rows - (config.last_row == "arrival")
    uniform = model_uniforms(problem.key, (windows, seen), config.groups)

    terms = torch_drama.world_model_loss(model, batch, torch_copy.tensor(uniform))
    for name, term in terms.items():
        assert_close(term, metrics[f"model/{name}"][0])
    sum(terms.values()).backward()
    # The gradients lie in a model of their own, so that the weights' own layout is undone.
    wanted = torch_drama.WorldModel(config, problem.sizes.num_actions)
    torch_copy.copy_world_model(wanted, grads)
    assert_gradients_close(model, wanted)
    model.zero_grad(set_to_none=True)

    norms = [m for m in model.encoder if isinstance(m, torch.nn.BatchNorm2d)]
    for i, norm in enumerate(norms):
        ours = stats["encoder"][f"BatchNorm_{i}"]
        assert_close(norm.running_mean, ours["mean"])
        assert_close(norm.running_var, ours["var"])

    samples = torch_copy.tensor(entries.samples)
    with torch.no_grad():
        outputs, _ = model.core.unroll(model.core_input(samples, batch.actions[:, :-1]))
        assert_close(outputs, entries.outputs)


def test_torch_steps_as_it_unrolls(problem, sides):
    import torch

    core, sizes = sides[0].core, problem.sizes
    xs = torch.randn(3, 7, sizes.latent + sizes.num_actions)
    with torch.no_grad():
        outputs, _ = core.unroll(xs)
        _, carry = core.unroll(xs[:, :5], keep_carry=True)
        for t in (5, 6):
            carry, output = core.step(carry, xs[:, t])
            assert_close(output, outputs[:, t])


def states(carry):
    """Of each layer: states of Mamba-2, values of a transformer, which counts its rows too."""
    layers = carry[1] if isinstance(carry, tuple) else carry
    return [layer[1] for layer in layers]


def test_torch_imagines_our_step(needs_torch, problem, sides, quick_compile):
    import torch

    from experiments.benchmarks.pytorch import torch_copy

    model, starts = sides[0], problem.starts.latent
    action = jnp.arange(problem.sizes.starts) % problem.sizes.num_actions
    ours = bind(problem.model, problem.model_state)
    latent = jax.vmap(ours.imagine)(jax.random.split(problem.key, len(action)), starts, action)
    prediction = jax.vmap(ours.predict)(latent)
    start = torch_copy.to_latent(starts)
    with torch.no_grad():
        actions = torch_copy.tensor(action).long()
        carry, output = model.core.step(start.carry, model.core_input(start.sample, actions))
        assert_close(output, latent.output)
        wanted = states(torch_copy.to_latent(latent).carry)
        for found, state in zip(states(carry), wanted, strict=True):
            assert_close(found, state)
        assert_close((-model.termination(output)[..., 0]).sigmoid(), prediction.discount)


def test_torch_behaviour_has_our_loss_and_gradients(needs_torch, problem, sides, quick_compile):
    from experiments.benchmarks.pytorch import torch_behaviour, torch_copy

    sizes, state = problem.sizes, problem.behaviour_state
    imagined = torch_behaviour.imagine(*sides, torch_copy.to_latent(problem.starts.latent))
    horizon, starts = imagined.actions.shape
    assert (horizon, starts) == (sizes.behaviour.horizon, sizes.starts)

    def numbers(x):  # time last, as ours
        return jnp.asarray(x.transpose(0, 1).numpy())

    def with_start(x):  # row 0 of a prediction is not used
        return jnp.pad(numbers(x), ((0, 0), (1, 0)))

    parts = problem.behaviour.update.args[0]
    rows = actor_critic.Imagined(
        numbers(imagined.features),
        Prediction(with_start(imagined.reward), with_start(imagined.discount), {}),
        numbers(imagined.actions),
        jnp.ones(starts),
    )
    gradient = jax.jit(
        jax.value_and_grad(lambda p: actor_critic.loss(parts, p, state.stats, rows), has_aux=True)
    )
    (loss, (stats, _)), grads = gradient(state.params)

    behaviour = sides[1]
    found = torch_behaviour.behaviour_loss(behaviour, imagined)
    assert_close(found, loss)
    np.testing.assert_allclose([behaviour.low, behaviour.high], [stats.low, stats.high], rtol=1e-4)
    found.backward()
    features = behaviour.actor[0].in_features
    wanted = torch_behaviour.Behaviour(sizes.behaviour, features, sizes.num_actions)
    torch_copy.copy_behaviour(wanted, grads)
    for net in ("actor", "critic"):
        assert_gradients_close(getattr(behaviour, net), getattr(wanted, net))
    behaviour.zero_grad(set_to_none=True)


@pytest.mark.slow
def test_cost_per_seed_is_written_for_every_program(tmp_path, quick_compile):
    rows = seeds.run(quick=True, out=tmp_path)
    assert [(row["program"], row["seeds"]) for row in rows] == [
        (name, count) for name in seeds.cases(quick=True) for count in seeds.SEEDS[:2]
    ]
    assert all(row["cpu_s"] > 0 and row["compile_cpu_s"] > 0 for row in rows)
    assert len((tmp_path / "seeds.csv").read_text().splitlines()) == 1 + len(rows)
    assert (tmp_path / "seeds.png").stat().st_size > 0


# ------------------------------------------------------------------------------------- the command


def test_command_runs_each_in_a_process_of_its_own_and_goes_on_after_a_failure(
    monkeypatch, tmp_path, capsys
):
    started = []

    def start(arguments, **_):
        started.append(arguments)
        return types.SimpleNamespace(returncode=int("--only=seeds" in arguments))

    monkeypatch.setattr(command.subprocess, "run", start)
    with pytest.raises(SystemExit):
        command.run(["seeds", "published"], quick=True, out=tmp_path)
    assert [arguments[3:] for arguments in started] == [
        [f"--only={name}", f"--out={tmp_path}", "--quick"] for name in ("seeds", "published")
    ]
    assert "error: seeds failed" in capsys.readouterr().err


def test_command_with_one_name_runs_it_here_and_tells_of_a_missing_torch(
    monkeypatch, tmp_path, capsys
):
    calls = []
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(published, "run", lambda quick, out: calls.append((quick, out)))
    monkeypatch.setattr("mbrl_jax.train.runtime.configure_runtime", lambda **_: None)
    command.run(["published"], quick=False, out=tmp_path)
    assert calls == [(False, tmp_path)]
    assert "pip install -c constraints.txt -e '.[bench]'" in capsys.readouterr().out


def test_command_refuses_an_unknown_name_before_anything_runs():
    arguments = [sys.executable, "-m", "experiments.benchmarks", "--only=seeds,kernel"]
    done = subprocess.run(arguments, cwd=command.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: unknown benchmark 'kernel'; there are published, seeds, kernels, convolutions, "
        "host, shell, scaling"
    ]


def test_all_forms_of_a_kernel_have_our_results_and_gradients(quick_compile):
    torch = pytest.importorskip("torch")
    from experiments.benchmarks import kernel_forms
    from experiments.benchmarks.pytorch import kernels_torch

    def assert_all_close(found, wanted, tolerance=1e-5):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            scale = np.abs(b).max()
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)

    for case in kernels.cases(quick=True)[: len(kernel_forms.FORMS)]:
        forms = kernel_forms.FORMS[case.shape.kernel]
        args, y_bar = kernel_forms.inputs(case.shape)
        wanted = jax.jit(kernel_forms.with_gradients(forms["ours"]))(args, y_bar)
        for form_name, form in forms.items():
            # Cauchy sums lose digits in float32, in gradients above all.
            tolerance = 3e-4 if form_name == kernel_forms.FOURIER else 1e-5
            found = jax.jit(kernel_forms.with_gradients(form))(args, y_bar)
            assert_all_close(found, wanted, tolerance)
        for name in kernel_forms.TORCH_FORMS[case.shape.kernel].values():
            _, both = kernels_torch.calls(getattr(kernels_torch, name), args, y_bar)
            y, gradients = both()
            # torch has the gradient of a complex number as ∂/∂re + i ∂/∂im, jax its conjugate.
            found = y.numpy(), tuple(torch.resolve_conj(g.conj()).numpy() for g in gradients)
            assert_all_close(found, wanted)


@pytest.mark.slow
def test_kernels_are_timed_in_every_form(tmp_path, quick_compile):
    rows = kernels.run(quick=True, out=tmp_path)
    for case in kernels.cases(quick=True):
        key = (case.shape.kernel, str(case.shape))
        mine = [row for row in rows if (row["kernel"], row["shape"]) == key]
        found = {(row["form"], row["direction"]) for row in mine}
        assert {form for form, _ in found} <= set(case.forms)
        assert {direction for _, direction in found} == {"forward", "forward+backward"}
    assert all(row["cpu_s"] > 0 and row["share_of_peak"] > 0 for row in rows)
    tables = {name: (tmp_path / name).read_text() for name in ("kernels.csv", "kernels_bars.csv")}
    assert len(tables["kernels.csv"].splitlines()) == 1 + len(rows)
    assert "temporary memory" in tables["kernels_bars.csv"]
    assert (tmp_path / "kernels.png").stat().st_size > 0


def test_every_bar_names_a_row_that_is_measured():
    measured = {
        (case.shape.kernel, str(case.shape), form)
        for case in kernels.cases()
        for form in case.forms
    }
    assert set(kernels.TIME_BARS) <= measured


def test_convolutions_are_timed_by_every_method(tmp_path):
    rows = convolutions.run(quick=True, out=tmp_path)
    assert (tmp_path / "convolutions.csv").exists()
    assert {row["method"] for row in rows if row["auto"]} == {"slices"}
    assert {(row["method"], row["direction"]) for row in rows} == {
        (method, direction)
        for method in ("lax", "subpixel", "slices")
        for direction in (convolutions.FORWARD, convolutions.BOTH)
    }


def test_all_methods_and_torch_compute_the_timed_convolutions():
    pytest.importorskip("torch")
    for transposed in (False, True):
        layer = convolutions.Layer(6, 5, 2, (2, 3), transposed, frames=2)
        x_bar, _ = convolutions._torch_calls(layer)[convolutions.BOTH]()
        for method in ("lax", "subpixel", "slices"):
            y, (found, _) = convolutions._programs(layer, method)[convolutions.BOTH].run()
            assert y.shape[1:3] == ((6, 6) if transposed else (3, 3))
            assert_close(x_bar.movedim(1, -1), found)


@pytest.mark.slow
def test_the_host_path_is_timed(tmp_path, quick_compile):
    rows = host.run(quick=True, out=tmp_path)
    assert (tmp_path / "host.csv").read_text().count("\n") == 1 + len(rows)
    sides = {(row["program"], row["lanes"]): row for row in rows if row["side"] == "ours"}
    assert set(sides) == {(f"lanes, {t}", n) for t in ("Pong-v5", "HalfCheetah-v5") for n in (1, 8)}
    assert all(row["ratio"] > 0 for row in sides.values())
    assert [row["bar"] for row in rows if "bar" in row] == [host.LANES_BAR] * 2 + [host.SHARE_BAR]
    assert rows[-1]["side"] == "a row"


def test_bytes_that_devices_send_each_other_are_counted():
    mesh = jax.sharding.Mesh(jax.devices(), ("seed",))
    spec = jax.sharding.PartitionSpec("seed")

    def both(x, y):
        return jax.lax.psum(x, "seed"), jax.lax.all_gather(y, "seed")

    mapped = jax.shard_map(both, mesh=mesh, in_specs=(spec, spec), out_specs=spec)
    args = jnp.zeros((16, 3)), jnp.zeros(8, jnp.int16)
    text = jax.jit(mapped).lower(*args).compile().as_text()
    assert scaling.collectives(text) == (2, 2 * 3 * 4 + 8 * 2)
    alone = jax.shard_map(lambda x: x * 2, mesh=mesh, in_specs=spec, out_specs=spec)
    text = jax.jit(alone).lower(args[0]).compile().as_text()
    assert scaling.collectives(text) == (0, 0)


@pytest.mark.slow
def test_seeds_send_nothing_to_other_devices(tmp_path):
    rows = scaling.run(quick=True, out=tmp_path)
    assert [(row["seeds"], row["devices"], row["lanes_of_device"]) for row in rows] == [
        (3, 1, 3),
        (3, 2, 2),
    ]
    assert all(row["collectives"] == row["collective_bytes"] == 0 for row in rows)
    assert 1.2 < rows[1]["against_ideal"] < 1.5  # four lanes for three seeds
    assert (tmp_path / "scaling.csv").exists()


@pytest.mark.slow
def test_the_shell_is_measured_beside_the_programs(tmp_path):
    rows = {(row["run"], row["part"]): row for row in shell.run(quick=True, out=tmp_path)}
    parts = {part: row for (name, part), row in rows.items() if name == "catch"}
    assert parts["programs"]["share"] + parts["all but programs"]["share"] == pytest.approx(1)
    assert parts["save, in the training thread"]["wall_s"] > 0
    assert parts["save, in the background"]["cpu_s"] > 0
    new, whole = (
        rows["atari", f"{what}, in the background"]["megabytes"]
        for what in ("20 new rows", "the whole")
    )
    assert 0.24 < new < 0.4 and whole > 2.4  # 12 KB a row, 200 of them
    assert (tmp_path / "shell.csv").exists()
