"""The PyTorch side of `published`: the same updates and parts, on one thread or on a GPU."""

import functools
from collections.abc import Callable

import torch
from torch.nn import functional as F

from experiments.benchmarks import published_dreamer, timing
from experiments.benchmarks.published_jax import Problem
from experiments.benchmarks.pytorch import torch_copy, torch_dreamer
from experiments.benchmarks.pytorch.torch_behaviour import (
    Behaviour,
    Imagined,
    actor_loss,
    behaviour_update,
    context_latent,
    critic_loss,
    imagine,
    update_slow_critic,
)
from experiments.benchmarks.pytorch.torch_drama import (
    WorldModel,
    head_terms,
    optimiser_of,
    sample_one_hot,
    to_images,
    world_model_update,
)

Calls = dict[str, Callable[[], object]]


def make_calls(problem: Problem, in_parts: bool = True) -> tuple[Calls, Calls]:
    """(whole updates, parts), named as on the JAX side; weights and data are copied from it."""
    _begin()
    model, behaviour = make_nets(problem)
    updates = _updates(problem, model, behaviour)
    parts: Calls = {}
    if in_parts:
        parts = _world_model_parts(problem, model) | _behaviour_parts(problem, behaviour, model)
    return _finished(updates), _finished(parts)


def dreamer_calls(problem: published_dreamer.Problem) -> Calls:
    """DreamerV3's joint update."""
    _begin()
    model, behaviour = dreamer_nets(problem)
    sizes, batch = problem.sizes, torch_copy.to_vectors(problem.batch)
    optimisers = (
        optimiser_of(model.parameters(), sizes.model.optimiser),
        optimiser_of(behaviour.trained(), sizes.behaviour.optimiser),
    )
    return _finished({"joint": lambda: torch_dreamer.update(model, behaviour, optimisers, batch)})


def dreamer_nets(
    problem: published_dreamer.Problem,
) -> tuple[torch_dreamer.WorldModel, torch_dreamer.Behaviour]:
    """With the weights of `problem`."""
    sizes = problem.sizes
    model = torch_dreamer.WorldModel(sizes.model, sizes.observation, sizes.num_actions)
    features = sizes.model.deter + sizes.model.groups * sizes.model.classes
    behaviour = torch_dreamer.Behaviour(sizes.behaviour, features, sizes.num_actions)
    torch_copy.copy_rssm(model, problem.model_state.params)
    torch_copy.copy_behaviour(behaviour, problem.behaviour_state.params)
    return model, behaviour


def _begin() -> None:
    torch.set_num_threads(1)
    if not timing.on_cpu():
        torch.set_default_device("cuda")
        torch.set_float32_matmul_precision("high")  # TF32, as XLA's default is there


def _finished(calls: Calls) -> Calls:
    """Calls that end when a GPU has done its work."""
    if timing.on_cpu():
        return calls

    def finish(call):
        call()
        torch.cuda.synchronize()

    return {name: functools.partial(finish, call) for name, call in calls.items()}


def make_nets(problem: Problem) -> tuple[WorldModel, Behaviour]:
    """With the weights of `problem`."""
    sizes = problem.sizes
    model = WorldModel(sizes.model, sizes.num_actions)
    features = sizes.latent + sizes.model.core.width
    behaviour = Behaviour(sizes.behaviour, features, sizes.num_actions)
    torch_copy.copy_world_model(model, problem.model_state.params)
    torch_copy.copy_behaviour(behaviour, problem.behaviour_state.params)
    return model, behaviour


def _updates(problem: Problem, model: WorldModel, behaviour: Behaviour) -> Calls:
    sizes, batch = problem.sizes, torch_copy.to_batch(problem.batch)
    start = torch_copy.to_latent(problem.starts.latent)
    model_optimiser = optimiser_of(model.parameters(), sizes.model.optimiser)
    optimiser = optimiser_of(behaviour.trained(), sizes.behaviour.optimiser)
    shape = (sizes.starts, sizes.context)
    frames = torch.randint(0, 256, (*shape, 64, 64, 3), dtype=torch.uint8)
    actions = torch.randint(0, sizes.num_actions, shape)

    def fresh():  # imagining uses a carry up
        return start._replace(carry=model.core.copy_carry(start.carry))

    def from_contexts():
        start = context_latent(model, frames, actions)
        behaviour_update(model, behaviour, optimiser, start)

    return {
        "world model": lambda: world_model_update(model, model_optimiser, batch),
        "behaviour": lambda: behaviour_update(model, behaviour, optimiser, fresh()),
        "behaviour, contexts encoded": from_contexts,
    }


def _forget_gradients(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = None


def _world_model_parts(problem: Problem, model: WorldModel) -> Calls:
    sizes, batch = problem.sizes, torch_copy.to_batch(problem.batch)
    shape = (sizes.windows, sizes.rows)
    frames = batch.frames.flatten(0, 1)
    encoded = torch.randn(*shape, model.posterior.in_features, requires_grad=True)
    samples = torch.randn(len(frames), sizes.latent, requires_grad=True)
    xs = torch.randn(shape[0], shape[1] - 1, sizes.latent + sizes.num_actions, requires_grad=True)
    outputs = torch.randn(shape[0], shape[1] - 1, sizes.model.core.width, requires_grad=True)
    optimiser = optimiser_of(model.parameters(), sizes.model.optimiser)
    grads = [torch.zeros_like(p) for p in model.parameters()]

    def run(loss):
        def call():
            loss().backward()
            _forget_gradients(model)
            for leaf in (encoded, samples, xs, outputs):
                leaf.grad = None

        return call

    def heads():
        posterior = model.log_probs(model.posterior(encoded))
        drawn = sample_one_hot(posterior)
        return (
            sum(head_terms(model, posterior, outputs, batch).values())
            + 1e-3 * drawn.square().mean()
        )

    def decode():
        return F.mse_loss(model.decoder(samples).sigmoid(), to_images(frames), reduction="sum")

    def optimise():
        for parameter, grad in zip(model.parameters(), grads, strict=True):
            parameter.grad = grad
        optimiser.step()

    return {
        "world model: encoder": run(lambda: model.encoder(to_images(frames)).square().mean()),
        "world model: core": run(lambda: model.core.unroll(xs)[0].square().mean()),
        "world model: heads and losses": run(heads),
        "world model: decoder": run(decode),
        "world model: optimiser": optimise,
    }


def _behaviour_parts(problem: Problem, behaviour: Behaviour, model: WorldModel) -> Calls:
    sizes, horizon = problem.sizes, problem.sizes.behaviour.horizon
    start = torch_copy.to_latent(problem.starts.latent)
    numbers = torch.rand(horizon, sizes.starts)
    imagined = Imagined(
        torch.zeros(horizon + 1, sizes.starts, behaviour.actor[0].in_features),
        torch.zeros(horizon, sizes.starts, dtype=torch.long),
        numbers,
        numbers,
    )
    optimiser = optimiser_of(behaviour.trained(), sizes.behaviour.optimiser)
    grads = [torch.zeros_like(p) for p in behaviour.trained()]

    def act():
        actor_loss(behaviour, imagined, numbers).mean().backward()
        _forget_gradients(behaviour)

    def value():
        critic_loss(behaviour, imagined)[0].mean().backward()
        _forget_gradients(behaviour)

    def optimise():
        for parameter, grad in zip(behaviour.trained(), grads, strict=True):
            parameter.grad = grad
        optimiser.step()
        update_slow_critic(behaviour)

    return {
        "behaviour: imagination": lambda: imagine(
            model, behaviour, start._replace(carry=model.core.copy_carry(start.carry))
        ),
        "behaviour: actor": act,
        "behaviour: critic": value,
        "behaviour: optimiser": optimise,
    }
