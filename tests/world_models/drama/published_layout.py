"""Random checkpoints in the layout of the published PyTorch Drama, and its nets in NumPy.

Names, shapes and equations come from the specification (drama.md, sections 2 to 5, 7.1); nothing
here uses the converter. Frames and maps are channel-first and weights are torch's.
"""

import numpy as np

CHANNELS = (3, 16, 32, 48, 64, 64)
WIDTH, INNER, STATES, HEADS = 512, 1024, 16, 16


class Checkpoint(dict):
    """Tensors by name, drawn so that activations stay near 1."""

    def __init__(self, seed: int):
        super().__init__()
        self.rng = np.random.default_rng(seed)

    def add(self, name, *shape, scale=None, mean=0.0):
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 25
        values = self.rng.normal(size=shape) * (fan_in**-0.5 if scale is None else scale) + mean
        self[name] = values.astype(np.float32)

    def linear(self, name, inputs, outputs, bias=True):
        self.add(f"{name}.weight", outputs, inputs)
        if bias:
            self.add(f"{name}.bias", outputs)

    def layer_norm(self, name, size):
        self.add(f"{name}.weight", size, scale=0.2, mean=1.0)
        self.add(f"{name}.bias", size)

    def batch_norm(self, name, size):
        self.layer_norm(name, size)
        self.add(f"{name}.running_mean", size)
        self[f"{name}.running_var"] = self.rng.uniform(0.5, 1.5, size).astype(np.float32)
        self[f"{name}.num_batches_tracked"] = np.array(7, np.int64)

    def sequential(self, name, inputs, width, outputs, first):
        for i in range(3):
            self.linear(f"{name}.{first + 3 * i}", inputs if i == 0 else width, width)
            self.add(f"{name}.{first + 3 * i + 1}.scale", width, scale=0.2, mean=1.0)
        self.linear(f"{name}.{first + 9}", width, outputs)


def world_model(backbone: str, num_actions: int, seed: int = 0) -> Checkpoint:
    """The state dict of the world model with the backbone "Mamba2", "Mamba" or "Transformer"."""
    c = Checkpoint(seed)
    for i, (before, after) in enumerate(zip(CHANNELS, CHANNELS[1:], strict=False)):
        c.add(f"encoder.backbone.{3 * i}.weight", after, before, 5, 5)
        c.add(f"encoder.backbone.{3 * i}.bias", after)
        c.batch_norm(f"encoder.backbone.{3 * i + 1}", after)
    add_core = {"Mamba2": _add_mamba, "Mamba": _add_mamba, "Transformer": _add_transformer}
    add_core[backbone](c, num_actions, backbone)
    c.linear("dist_head.post_head", 1024, 1024)
    c.linear("dist_head.prior_head", WIDTH, 1024)
    c.linear("image_decoder.backbone.0", 1024, 1024)
    for i, (before, after) in enumerate(zip(CHANNELS[:0:-1], CHANNELS[-2::-1], strict=True)):
        c.batch_norm(f"image_decoder.backbone.{3 * i + 2}", before)
        name = f"image_decoder.backbone.{3 * i + 4}"
        c.add(f"{name}.weight", before, after, 5, 5, scale=(7 * before) ** -0.5)
        c.add(f"{name}.bias", after)
    for name, outputs in (("reward_decoder", 255), ("termination_decoder", 1)):
        c.linear(f"{name}.backbone.0", WIDTH, 256)
        c.add(f"{name}.backbone.1.scale", 256, scale=0.2, mean=1.0)
        c.linear(f"{name}.head", 256, outputs)
    return c


def _add_mamba(c: Checkpoint, num_actions: int, backbone: str) -> None:
    name = "sequence_model.backbone."
    c.linear(f"{name}stem.0", 1024 + num_actions, WIDTH)
    c.add(f"{name}stem.1.scale", WIDTH, scale=0.2, mean=1.0)
    for i in range(2):
        mixer = f"{name}layers.{i}.mixer."
        c.add(f"{name}layers.{i}.norm.weight", WIDTH, scale=0.2, mean=1.0)
        channels, lanes = (INNER + 2 * STATES, HEADS) if backbone == "Mamba2" else (INNER, INNER)
        c.linear(f"{mixer}in_proj", WIDTH, 2096 if backbone == "Mamba2" else 2048, bias=False)
        c.add(f"{mixer}conv1d.weight", channels, 1, 4)
        c.add(f"{mixer}conv1d.bias", channels)
        c.add(f"{mixer}D", lanes, scale=0.3, mean=1.0)
        c.linear(f"{mixer}out_proj", INNER, WIDTH, bias=False)
        if backbone == "Mamba2":
            c.add(f"{mixer}A_log", HEADS, scale=0.7, mean=1.0)
            c.add(f"{mixer}dt_bias", HEADS, scale=1.0, mean=-2.0)
            c.add(f"{mixer}norm.weight", INNER, scale=0.2, mean=1.0)
        else:
            c.add(f"{mixer}A_log", INNER, STATES, scale=0.7, mean=1.0)
            c.linear(f"{mixer}x_proj", INNER, 32 + 2 * STATES, bias=False)
            c.linear(f"{mixer}dt_proj", 32, INNER)
    c.add(f"{name}norm_f.weight", WIDTH, scale=0.2, mean=1.0)


def _add_transformer(c: Checkpoint, num_actions: int, backbone: str) -> None:
    del backbone
    name = "sequence_model."
    c.linear(f"{name}stem.0", 1024 + num_actions, WIDTH, bias=False)
    c.layer_norm(f"{name}stem.1", WIDTH)
    c.linear(f"{name}stem.3", WIDTH, WIDTH, bias=False)
    c.layer_norm(f"{name}stem.4", WIDTH)
    c.add(f"{name}position_encoding.pos_emb.weight", 128, WIDTH, scale=1.0)
    c.layer_norm(f"{name}layer_norm", WIDTH)
    for i in range(2):
        layer = f"{name}layer_stack.{i}."
        for part in ("w_qs", "w_ks", "w_vs", "fc"):
            c.linear(f"{layer}slf_attn.{part}", WIDTH, WIDTH, bias=False)
        c.layer_norm(f"{layer}slf_attn.layer_norm", WIDTH)
        c.linear(f"{layer}pos_ffn.w_1", WIDTH, 2 * WIDTH)
        c.linear(f"{layer}pos_ffn.w_2", 2 * WIDTH, WIDTH)
        c.layer_norm(f"{layer}pos_ffn.layer_norm", WIDTH)


def agent(num_actions: int, seed: int = 0) -> Checkpoint:
    """The state dict of the actor-critic, or of PPO."""
    c = Checkpoint(seed)
    c.sequential("actor", 1536, 256, num_actions, first=1)
    c.sequential("critic", 1536, 512, 255, first=0)
    c.sequential("slow_critic", 1536, 512, 255, first=0)
    return c


# ----------------------------------------------------------------------------- the nets, in float64


def _linear(c, name, x):
    y = x @ c[f"{name}.weight"].astype(np.float64).T
    return y + c[f"{name}.bias"] if f"{name}.bias" in c else y


def _silu(x):
    return x / (1 + np.exp(-x))


def _softplus(x):
    return np.logaddexp(0, x)


def _rms(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def _layer_norm(c, name, x, eps):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return x * c[f"{name}.weight"] + c[f"{name}.bias"]


def _batch_norm(c, name, x):
    mean, var, weight, bias = (
        c[f"{name}.{part}"].astype(np.float64)[:, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def _convolution(c, name, x, stride):
    """[N, C, H, W], kernel 5, padding 2."""
    weight = c[f"{name}.weight"].astype(np.float64)
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    side = x.shape[-1]
    y = 0.0
    for a in range(5):
        for b in range(5):
            window = padded[:, :, a : a + side : stride, b : b + side : stride]
            y = y + np.einsum("nchw,oc->nohw", window, weight[:, :, a, b], optimize=True)
    return y + c[f"{name}.bias"][:, None, None]


def _transposed(c, name, x, stride):
    """Each input pixel adds its kernel to the output: kernel 5, padding 2, output padding s - 1."""
    weight = c[f"{name}.weight"].astype(np.float64)
    side = x.shape[-1]
    out = np.zeros((len(x), weight.shape[1], stride * side + 4, stride * side + 4))
    for a in range(5):
        for b in range(5):
            tap = np.einsum("nchw,co->nohw", x, weight[:, :, a, b], optimize=True)
            out[:, :, a : a + stride * side : stride, b : b + stride * side : stride] += tap
    end = 2 + stride * side
    return out[:, :, 2:end, 2:end] + c[f"{name}.bias"][:, None, None]


def posterior(c: Checkpoint, frames: np.ndarray) -> np.ndarray:
    """Log-probabilities [N, 32, 32] of frames [N, 3, 64, 64] in [0, 1]."""
    x = frames
    for i in range(5):
        x = _convolution(c, f"encoder.backbone.{3 * i}", x, 1 if i == 0 else 2)
        x = _silu(_batch_norm(c, f"encoder.backbone.{3 * i + 1}", x))
    return _unimix(_linear(c, "dist_head.post_head", x.reshape(len(x), -1)))


def prior(c: Checkpoint, d: np.ndarray) -> np.ndarray:
    """Log-probabilities [N, 32, 32] of outputs [N, 512]."""
    return _unimix(_linear(c, "dist_head.prior_head", d))


def _unimix(logits):
    logits = logits.reshape(-1, 32, 32)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return np.log(0.99 * p / p.sum(-1, keepdims=True) + 0.01 / 32)


def decode(c: Checkpoint, z: np.ndarray) -> np.ndarray:
    """Frames [N, 3, 64, 64] in [0, 1] of samples [N, 1024]."""
    name = "image_decoder.backbone"
    x = _linear(c, f"{name}.0", z).reshape(-1, 64, 4, 4)
    for i in range(5):
        x = _silu(_batch_norm(c, f"{name}.{3 * i + 2}", x))
        x = _transposed(c, f"{name}.{3 * i + 4}", x, 1 if i == 4 else 2)
    return 1 / (1 + np.exp(-x))


def head(c: Checkpoint, name: str, d: np.ndarray) -> np.ndarray:
    """Logits of the "reward_decoder" or "termination_decoder"."""
    hidden = _linear(c, f"{name}.backbone.0", d)
    return _linear(c, f"{name}.head", _silu(_rms(hidden, c[f"{name}.backbone.1.scale"], 1e-6)))


def sequential(c: Checkpoint, name: str, x: np.ndarray, first: int) -> np.ndarray:
    """Logits of "actor" (first = 1, its inputs not normalised), "critic" or "slow_critic"."""
    for i in range(3):
        x = _linear(c, f"{name}.{first + 3 * i}", x)
        x = _silu(_rms(x, c[f"{name}.{first + 3 * i + 1}.scale"], 1e-6))
    return _linear(c, f"{name}.{first + 9}", x)


def core(c: Checkpoint, backbone: str, x: np.ndarray) -> np.ndarray:
    """Outputs [T, 512] of rows [T, 1024 + A] from an empty memory."""
    if backbone == "Transformer":
        return _transformer(c, x)
    name = "sequence_model.backbone."
    mixer = _mamba2 if backbone == "Mamba2" else _mamba
    r = _silu(_rms(_linear(c, f"{name}stem.0", x), c[f"{name}stem.1.scale"], 1e-6))
    for i in range(2):
        h = _rms(r, c[f"{name}layers.{i}.norm.weight"], 1e-5)
        r = r + mixer(c, f"{name}layers.{i}.mixer.", h)
    return _rms(r, c[f"{name}norm_f.weight"], 1e-5)


def _causal(c, name, x):
    """Depthwise convolution of width 4 over rows [T, C]; the last tap reads the row itself."""
    taps = c[f"{name}conv1d.weight"][:, 0].astype(np.float64)
    padded = np.pad(x, ((3, 0), (0, 0)))
    y = sum(padded[k : k + len(x)] * taps[:, k] for k in range(4))
    return _silu(y + c[f"{name}conv1d.bias"])


def _mamba2(c, name, u):
    z, xbc, dt = np.split(_linear(c, f"{name}in_proj", u), [1024, 2080], axis=-1)
    x, b, out = np.split(_causal(c, name, xbc), [1024, 1040], axis=-1)
    x = x.reshape(-1, 16, 64)
    dt = _softplus(dt + c[f"{name}dt_bias"])
    a, state, ys = -np.exp(c[f"{name}A_log"].astype(np.float64)), np.zeros((16, 64, 16)), []
    for t in range(len(u)):
        added = dt[t][:, None, None] * x[t][:, :, None] * b[t]
        state = np.exp(dt[t] * a)[:, None, None] * state + added
        ys.append(state @ out[t] + c[f"{name}D"][:, None] * x[t])
    y = np.stack(ys).reshape(len(u), 1024) * _silu(z)
    return _linear(c, f"{name}out_proj", _rms(y, c[f"{name}norm.weight"], 1e-5))


def _mamba(c, name, u):
    x, z = np.split(_linear(c, f"{name}in_proj", u), 2, axis=-1)
    x = _causal(c, name, x)
    dt, b, out = np.split(_linear(c, f"{name}x_proj", x), [32, 48], axis=-1)
    dt = _softplus(_linear(c, f"{name}dt_proj", dt))
    a, state, ys = -np.exp(c[f"{name}A_log"].astype(np.float64)), np.zeros((1024, 16)), []
    for t in range(len(u)):
        state = np.exp(dt[t][:, None] * a) * state + (dt[t] * x[t])[:, None] * b[t]
        ys.append(state @ out[t] + c[f"{name}D"] * x[t])
    return _linear(c, f"{name}out_proj", np.stack(ys) * _silu(z))


def _transformer(c, x):
    name = "sequence_model."
    h = np.maximum(_layer_norm(c, f"{name}stem.1", _linear(c, f"{name}stem.0", x), 1e-5), 0)
    h = _layer_norm(c, f"{name}stem.4", _linear(c, f"{name}stem.3", h), 1e-5)
    h = h + c[f"{name}position_encoding.pos_emb.weight"][: len(x)]
    h = _layer_norm(c, f"{name}layer_norm", h, 1e-6)
    future = np.triu(np.ones((len(x), len(x)), bool), 1)
    for i in range(2):
        layer = f"{name}layer_stack.{i}."
        q, k, v = (
            _linear(c, f"{layer}slf_attn.w_{part}s", h).reshape(-1, 8, 64).transpose(1, 0, 2)
            for part in "qkv"
        )
        scores = np.where(future, -1e9, q @ k.transpose(0, 2, 1) / 8)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        y = (weights / weights.sum(-1, keepdims=True)) @ v
        y = _linear(c, f"{layer}slf_attn.fc", y.transpose(1, 0, 2).reshape(-1, 512))
        h = _layer_norm(c, f"{layer}slf_attn.layer_norm", h + y, 1e-6)
        y = _linear(c, f"{layer}pos_ffn.w_2", np.maximum(_linear(c, f"{layer}pos_ffn.w_1", h), 0))
        h = _layer_norm(c, f"{layer}pos_ffn.layer_norm", h + y, 1e-6)
    return h
