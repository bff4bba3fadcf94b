"""Weights of the published PyTorch Drama (realwenlongwang/drama e7b4041) as parameters of ours.

Names and shapes are those of its `state_dict()`s of world model and agent. What differs in layout:
torch's linear weights are [out, in]; convolutions [out, in, 5, 5] and transposed ones
[in, out, 5, 5], ours [5, 5, in, out]; the depthwise ones of the mixers [channels, 1, 4], ours
[4, channels], the newest input last in both. Flattened maps are channel-first and the splits of
`in_proj` in the same order on both sides.

Written from the code's definitions and tested on made-up checkpoints: the authors have published no
trained weights to try. Reading files is left to `mbrl_jax.world_models.drama.published_files`.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.behaviours import actor_critic
from mbrl_jax.cores import mamba, mamba2, storm
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec, LearnerState, PyTree
from mbrl_jax.world_models import drama

Tensors = Mapping[str, np.ndarray]
COMPILED = "_orig_mod."  # what torch.compile, which the published programs call, puts before names
IMAGE = ArraySpec((64, 64, 3), "uint8")
CORE = "sequence_model."


Core = storm.Config | mamba.Config | mamba2.Config


def training_config(core: Core) -> drama.Config:
    """The config that the authors train with a backbone: as published in every switch."""
    return drama.Config(
        core=core,
        boundaries="ignored",
        # The transformer has no captured step, and so no integers in its way.
        integer_buffer=not isinstance(core, storm.Config),
        last_row="arrival",
    )


def behaviour_config(core: Core) -> actor_critic.Config:
    """The actor-critic that the authors train with a backbone: as published in every switch."""
    return actor_critic.Config(
        rewards="aligned" if isinstance(core, storm.Config) else "shifted",
        mixed_value="same",
        ends="threshold",
        weigh_reached=False,
        normalise_input=True,
        input_rows="passes",
    )


def recognise(tensors: Tensors) -> tuple[drama.Config, EnvSpec]:
    """The training config of a world model's state dict, and the environment that it knows.

    The backbone and the number of actions are read off the weights. Raises ValueError for what is
    no such state dict.
    """
    source = _Source(tensors)
    core: Core
    if source.has(CORE + "position_encoding.pos_emb.weight"):
        window = source.shape(CORE + "position_encoding.pos_emb.weight")[0]
        core, stem = storm.Config(window=window, dropout=0.1), CORE + "stem.0.weight"
    else:
        stem, mixer = CORE + "backbone.stem.0.weight", CORE + "backbone.layers.0.mixer."
        core = mamba.Config() if source.has(mixer + "x_proj.weight") else mamba2.Config()
    config = training_config(core)
    num_actions = source.shape(stem)[1] - config.groups * config.classes
    return config, EnvSpec(IMAGE, DiscreteSpec(num_actions), "merged")


def world_model_state(config: drama.Config, spec: EnvSpec, tensors: Tensors) -> LearnerState:
    """Parameters and running statistics from a world model's state dict; the optimiser is fresh.

    Raises ValueError where names are missing, left over, or of another shape than `config` has.
    """
    source = _Source(tensors)
    make_core: dict[type, Callable] = {
        mamba2.Config: _mamba_core,
        mamba.Config: _mamba_core,
        storm.Config: _storm_core,
    }
    if type(config.core) not in make_core:
        raise ValueError("the published cores are mamba2, mamba and storm")
    encoder, encoder_stats = _encoder(source, len(config.encoder.multipliers))
    decoder, decoder_stats = _decoder(source, len(config.decoder.multipliers))
    params = {
        "encoder": encoder,
        "posterior": {"Dense_0": source.linear("dist_head.post_head")},
        "core": make_core[type(config.core)](source, config.core),
        "prior": {"Dense_0": source.linear("dist_head.prior_head")},
        "reward": _head(source, "reward_decoder", config.head_layers),
        "termination": _head(source, "termination_decoder", config.head_layers),
        "decoder": decoder,
    }
    stats = {"encoder": encoder_stats, "decoder": decoder_stats}
    source.check_empty()
    model = config.make(spec)
    template = jax.eval_shape(model.init, jax.random.key(0))
    params = _checked(params, template.params, "params")
    stats = _checked(stats, template.stats, "stats")
    return LearnerState(params, stats, config.optimiser.make().init(params))


def actor_critic_state(
    config: actor_critic.Config, spec: EnvSpec, num_features: int, tensors: Tensors
) -> LearnerState:
    """Actor, critic and slow critic from an agent's state dict, of actor-critic or PPO alike.

    The published actor normalises its inputs by running statistics that its state dict lacks
    (specification, trap 5), and the range of returns is not there either: both begin anew.

    Args:
      config: sizes of the nets.
      spec: of the environment.
      num_features: of the model's features, 1,536 in the published one.
      tensors: the state dict.
    """
    source = _Source(tensors)
    params = {
        # Behind a normaliser without parameters at place 0.
        "actor": _sequential(source, "actor", config.layers, first=1),
        "critic": _sequential(source, "critic", config.layers),
    }
    slow = _sequential(source, "slow_critic", config.layers)
    source.check_empty()

    def fresh():
        return config.make(spec).init(jax.random.key(0), jnp.zeros((num_features,)))

    template = jax.eval_shape(fresh)
    params = _checked(params, template.params, "params")
    slow = _checked(slow, template.stats.target_critic, "slow_critic")

    @jax.jit  # leaves out the initial weights, which nothing reads
    def filled():
        state = fresh()
        return state._replace(params=params, stats=state.stats._replace(target_critic=slow))

    return filled()


# ------------------------------------------------------------------------------------- the source


class _Source:
    """A state dict whose tensors are taken out one by one."""

    def __init__(self, tensors: Tensors):
        self._left = {
            name.removeprefix(COMPILED): tensor
            for name, tensor in tensors.items()
            if not name.endswith(".num_batches_tracked")
        }

    def has(self, name: str) -> bool:
        return name in self._left

    def shape(self, name: str) -> tuple[int, ...]:
        return np.shape(self._find(name))

    def take(self, name: str) -> np.ndarray:
        tensor = self._find(name)
        del self._left[name]
        return np.asarray(tensor, np.float32)

    def check_empty(self) -> None:
        if self._left:
            raise ValueError(
                f"this state dict holds {len(self._left)} tensors that the published model does "
                f"not have, such as {next(iter(self._left))!r}"
            )

    def linear(self, name: str, bias: bool = True) -> PyTree:
        layer = {"kernel": self.take(f"{name}.weight").T}
        return layer | ({"bias": self.take(f"{name}.bias")} if bias else {})

    def layer_norm(self, name: str) -> PyTree:
        return {"scale": self.take(f"{name}.weight"), "bias": self.take(f"{name}.bias")}

    def batch_norm(self, name: str) -> tuple[PyTree, PyTree]:
        """(parameters, running statistics)."""
        stats = {
            "mean": self.take(f"{name}.running_mean"),
            "var": self.take(f"{name}.running_var"),
        }
        return self.layer_norm(name), stats

    def _find(self, name: str) -> np.ndarray:
        if name not in self._left:
            raise ValueError(
                f"this state dict has no {name!r}: it is none of the published Drama's, or of "
                "another backbone than the config's"
            )
        return self._left[name]


def _checked(tree: PyTree, template: PyTree, name: str) -> PyTree:
    """`tree` as JAX arrays of just the shapes of `template`; `name` is told in errors."""
    found = dict(jax.tree_util.tree_flatten_with_path(tree)[0])
    for path, expected in jax.tree_util.tree_flatten_with_path(template)[0]:
        shape = found[path].shape if path in found else "none"
        if shape != expected.shape:
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} has the shape {shape} in this state dict, and "
                f"{expected.shape} by the config"
            )
    return jax.tree.map(lambda x, t: jnp.asarray(x, t.dtype), tree, template)


# ------------------------------------------------------------------------------------------- parts


def _encoder(source: _Source, layers: int) -> tuple[PyTree, PyTree]:
    params, stats = {}, {}
    for i in range(layers):  # convolution, normalisation, activation
        params[f"Conv_{i}"] = _convolution(source, f"encoder.backbone.{3 * i}", (2, 3, 1, 0))
        params[f"BatchNorm_{i}"], stats[f"BatchNorm_{i}"] = source.batch_norm(
            f"encoder.backbone.{3 * i + 1}"
        )
    return params, stats


def _decoder(source: _Source, layers: int) -> tuple[PyTree, PyTree]:
    name = "image_decoder.backbone"  # linear, reshape; normalisation, activation, convolution …
    params, stats = {"Dense_0": source.linear(f"{name}.0")}, {}
    for i in range(layers):
        params[f"BatchNorm_{i}"], stats[f"BatchNorm_{i}"] = source.batch_norm(f"{name}.{3 * i + 2}")
        params[f"ConvTranspose_{i}"] = _convolution(source, f"{name}.{3 * i + 4}", (2, 3, 0, 1))
    return params, stats


def _convolution(source: _Source, name: str, order: tuple[int, ...]) -> PyTree:
    return {
        "kernel": source.take(f"{name}.weight").transpose(order),
        "bias": source.take(f"{name}.bias"),
    }


def _sequential(source: _Source, name: str, layers: int, first: int = 0) -> PyTree:
    """`layers` times linear, normalisation, activation; then linear."""
    params = {}
    for i in range(layers):
        params[f"Dense_{i}"] = source.linear(f"{name}.{first + 3 * i}")
        params[f"RMSNorm_{i}"] = {"scale": source.take(f"{name}.{first + 3 * i + 1}.scale")}
    return params | {f"Dense_{layers}": source.linear(f"{name}.{first + 3 * layers}")}


def _head(source: _Source, name: str, layers: int) -> PyTree:
    params = {}
    for i in range(layers):
        params[f"Dense_{i}"] = source.linear(f"{name}.backbone.{3 * i}")
        params[f"RMSNorm_{i}"] = {"scale": source.take(f"{name}.backbone.{3 * i + 1}.scale")}
    return params | {f"Dense_{layers}": source.linear(f"{name}.head")}


def _mamba_core(source: _Source, config: mamba.Config | mamba2.Config) -> PyTree:
    name = CORE + "backbone."
    params = {
        "stem": source.linear(f"{name}stem.0"),
        "stem_norm": {"scale": source.take(f"{name}stem.1.scale")},
        "final_norm": {"scale": source.take(f"{name}norm_f.weight")},
    }
    for i in range(config.layers):
        layer = f"{name}layers.{i}."
        params[f"norms_{i}"] = {"scale": source.take(f"{layer}norm.weight")}
        params[f"mixers_{i}"] = _mixer(source, f"{layer}mixer.", config)
    return params


def _mixer(source: _Source, name: str, config: mamba.Config | mamba2.Config) -> PyTree:
    params = {
        "in_proj": source.linear(f"{name}in_proj", bias=False),
        "conv_kernel": source.take(f"{name}conv1d.weight")[:, 0].T,
        "conv_bias": source.take(f"{name}conv1d.bias"),
        "a_log": source.take(f"{name}A_log"),
        "skip": source.take(f"{name}D"),
        "out_proj": source.linear(f"{name}out_proj", bias=False),
    }
    if isinstance(config, mamba2.Config):
        return params | {
            "dt_bias": source.take(f"{name}dt_bias"),
            "norm": {"scale": source.take(f"{name}norm.weight")},
        }
    return params | {
        "x_proj": source.linear(f"{name}x_proj", bias=False),
        "dt_proj": source.linear(f"{name}dt_proj"),
    }


def _storm_core(source: _Source, config: storm.Config) -> PyTree:
    params = {
        "stem": source.linear(f"{CORE}stem.0", bias=False),
        "stem_norm": source.layer_norm(f"{CORE}stem.1"),
        "stem_out": source.linear(f"{CORE}stem.3", bias=False),
        "stem_out_norm": source.layer_norm(f"{CORE}stem.4"),
        "positions": source.take(f"{CORE}position_encoding.pos_emb.weight"),
        "input_norm": source.layer_norm(f"{CORE}layer_norm"),
    }
    for i in range(config.layers):
        attention, net = (f"{CORE}layer_stack.{i}.{part}." for part in ("slf_attn", "pos_ffn"))
        query_key_value = [source.take(f"{attention}w_{part}s.weight").T for part in "qkv"]
        params[f"blocks_{i}"] = {
            "attention": {
                "in_proj": {"kernel": np.concatenate(query_key_value, axis=1)},
                "out_proj": source.linear(f"{attention}fc", bias=False),
            },
            "attention_norm": source.layer_norm(f"{attention}layer_norm"),
            "up": source.linear(f"{net}w_1"),
            "down": source.linear(f"{net}w_2"),
            "feed_forward_norm": source.layer_norm(f"{net}layer_norm"),
        }
    return params
