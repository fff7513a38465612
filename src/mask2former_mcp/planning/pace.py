"""How long a network takes for a step, and how much memory: a model whose constants are fitted to measurements.

A step costs a fixed overhead and time in proportion to the network's multiply-adds, counted from the spec; a GPU waits
where its loader is slower. Fitted to our engine: on two CPU cores (benchmarks/engine_cpu.md) Swin-T at 256 pixels,
2.3 s for a batch of 2, and the `mini` preset, 0.25 to 0.35 s for a batch of 8 at 128 to 160 pixels; on one H100 in bf16
(benchmarks/engine) Swin-T at 640 pixels, batches of 8 and 16, compiled and not. What nobody has timed (fp32 on a GPU,
several GPUs, TAO's images) errs to the slow side, and `basis` says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mask2former_mcp.planning.cross_field import swin_size
from mask2former_mcp.planning.rules import Situation
from mask2former_mcp.spec import dotted

MEGA = 1e6
# seconds = overhead + multiply-adds / rate; a training step is one forward and two of them backward
_CPU_OVERHEAD_S, _CPU_RATE, _CORES = 0.1, 4.6e10, 2  # fp32
_GRAPH_OVERHEAD_S, _EAGER_OVERHEAD_S = 0.012, 0.08  # the whole step in one CUDA graph, or launched piece by piece
_HALF_RATE, _FULL_RATE = 3.8e13, 1.0e13  # bf16 or fp16, fp32
_TAO_OVERHEAD_S, _TAO_SHARE = 0.12, 0.4  # of our rates
_COMPILE_S, _COMPILED = 120.0, 0.6  # what compiling takes, and the share of a step's time that is left then
_LOAD_S = 0.05  # of one loader process, for a megapixel (benchmarks/data)
_WRITE_S = 0.024  # of one image that a GPU predicted: overlays and masks as files
_FORWARD_SHARE = 0.3
_BYTES_PER_WEIGHT = 16  # weight, gradient and AdamW's two moments, fp32
# Per megapixel of one training image, in fp32 and in half precision; a smaller network needs less, by this power:
_FULL_ACTIVATIONS_GB, _HALF_ACTIVATIONS_GB, _COMPILED_ACTIVATIONS = 7.8, 3.5, 0.75
_ACTIVATION_POWER = 0.65
_EFFICIENTVIT_SHARE = 0.6  # of Swin-T's multiply-adds, roughly, for its middle sizes


@dataclass(frozen=True, slots=True)
class Network:
    """`multiply_adds` per megapixel of input, forward; `weights` is their number."""

    multiply_adds: float
    weights: float


_SWIN_T = Network(multiply_adds=2.48e11, weights=52e6)


def network(spec: Mapping[str, Any]) -> Network:
    """Count the network of a spec, coarsely: attention and linear layers, convolutions, mask products."""
    swin, head = dotted.get(spec, "model.backbone.swin"), dotted.get(spec, "model.sem_seg_head")
    former = dotted.get(spec, "model.mask_former")
    width, depths, _ = swin_size(spec)
    work = weights = 0.0
    for stage, depth in enumerate(depths):
        channels, tokens = width * 2**stage, MEGA / 16 / 4**stage
        per_token = (4 + 2 * swin["mlp_ratio"]) * channels**2 + 2 * swin["window_size"] ** 2 * channels
        work += depth * tokens * per_token
        weights += depth * (4 + 2 * swin["mlp_ratio"]) * channels**2 + 8 * channels**2
    if dotted.get(spec, "model.backbone.type") == "efficientvit":
        work, weights = work * _EFFICIENTVIT_SHARE, weights * _EFFICIENTVIT_SHARE
    conv, mask = head["convs_dim"], head["mask_dim"]
    tokens = MEGA * (1 / 64 + 1 / 256 + 1 / 1024)
    layer = 2 * conv**2 + 480 * conv + 2 * conv * 1024
    work += head["transformer_enc_layers"] * tokens * layer + MEGA / 16 * (width * conv + 9 * conv**2 + conv * mask)
    weights += head["transformer_enc_layers"] * layer + 9 * conv**2 + 14 * width * conv
    hidden, queries = former["hidden_dim"], former["num_object_queries"]
    layers = max(1, former["dec_layers"] - 1)
    work += layers * tokens / 3 * 2 * hidden**2 + (layers + 1) * queries * mask * MEGA / 16
    weights += layers * (8 * hidden**2 + 2 * hidden * former["dim_feedforward"]) + 4 * queries * hidden
    return Network(work, weights)


@dataclass(frozen=True, slots=True)
class Pace:
    """What one process on one device does. `rate`: multiply-adds a second; `basis`: what these numbers rest on.

    `is_graph`: the whole step is one CUDA graph, which is compiled where the run is long enough.
    """

    size: Network
    basis: str
    overhead_s: float
    rate: float
    is_gpu: bool = True
    is_half: bool = False
    is_graph: bool = False

    def step(self, pixels: float, batch: int, workers: int, steps: int) -> tuple[float, float]:
        """(seconds of one training step of so many, seconds once at the start)."""
        step_s, start_s = self._computing(pixels, batch, 1.0), 0.0
        if self.compiles(pixels, batch, steps):
            step_s, start_s = step_s * _COMPILED, _COMPILE_S
        return max(step_s, self._loading(pixels, batch, workers)), start_s

    def image(self, pixels: float, workers: int, *, writes: bool = False) -> float:
        """Seconds of one image that is predicted, and measured or written."""
        files = _WRITE_S if writes and self.is_gpu else 0.0
        return max(self._computing(pixels, 1, _FORWARD_SHARE), self._loading(pixels, 1, workers), files)

    def compiles(self, pixels: float, batch: int, steps: int) -> bool:
        """Whether the engine compiles: it must save twice what it takes."""
        return self.is_graph and steps * self._computing(pixels, batch, 1.0) * (1 - _COMPILED) > 2 * _COMPILE_S

    def memory(self, pixels: float, batch: int, *, steps: int | None) -> float:
        """GB of a training of so many steps, or, with None, of a forward pass."""
        relative: float = (self.size.multiply_adds / _SWIN_T.multiply_adds) ** _ACTIVATION_POWER
        activations = _HALF_ACTIVATIONS_GB if self.is_half and self.is_gpu else _FULL_ACTIVATIONS_GB
        activations *= relative * pixels / MEGA * batch
        context = 0.5 + (0.5 if self.is_gpu else 0)
        if steps is None:
            return context + self.size.weights * 4 / 1e9 + activations * 0.25
        if self.compiles(pixels, batch, steps):
            activations *= _COMPILED_ACTIVATIONS
        return context + self.size.weights * _BYTES_PER_WEIGHT / 1e9 + activations

    def _computing(self, pixels: float, batch: int, share: float) -> float:
        return share * (self.overhead_s + 3 * self.size.multiply_adds * pixels / MEGA * batch / self.rate)

    def _loading(self, pixels: float, batch: int, workers: int) -> float:
        """On a CPU the loader shares the cores, and the measured steps have it in them."""
        return batch * pixels / MEGA * _LOAD_S / max(1, workers) if self.is_gpu else 0.0


def pace(situation: Situation, gpus: int) -> Pace:
    """The pace of a job that has so many GPUs; 0 is the CPU."""
    spec, size, training = situation.spec, network(situation.spec), situation.action == "train"
    precision = str(dotted.get(spec, "train.precision"))
    half = precision != "fp32"
    rate = _HALF_RATE if half else _FULL_RATE
    if situation.runtime == "tao":
        basis = "model for TAO's image on an H100, which was not timed; rough"
        return Pace(size, basis, _TAO_OVERHEAD_S, rate * _TAO_SHARE, is_half=half)
    if gpus == 0:
        cpus = situation.machine.cpus
        faster: float = (max(1, cpus) / _CORES) ** 0.7
        if training and precision == "bf16":
            faster *= 1.4
        basis = f"model of our engine for {cpus} CPU core(s); rough, within a factor of two or three"
        return Pace(size, basis, _CPU_OVERHEAD_S, _CPU_RATE * faster, is_gpu=False, is_half=half)
    alone = gpus * int(spec["train"]["num_nodes"]) == 1
    graph = not training or (alone and precision != "fp16")
    is_timed = precision == "bf16" and alone
    basis = f"model of our engine for an H100 in {precision}" + (
        "; rough, within a factor of two or three on such a GPU"
        if is_timed
        else "; fitted to one GPU in bf16, so more likely too slow than too fast"
    )
    overhead = _GRAPH_OVERHEAD_S if graph else _EAGER_OVERHEAD_S
    return Pace(size, basis, overhead, rate, is_half=half, is_graph=graph and training)
