"""Reversible networks of any kind: backpropagation that rebuilds activations instead of storing them.

The ideas of this package, in reading order, each with the module that has it:

- plain: a chain changes two streams by steps: F or G of a unit (`CouplingStep`), or a layer of both streams
  (`InvertibleStep`). `run_plainly` is what all else must equal.
- chain: `ReversibleChain`, the Keras layer. It runs in segments: plainly, rebuilding, stored, or as a loop.
- coupling: `Coupling`, how a function changes a stream: `Additive`, `Scaled`, `Affine`, `Shortcut`.
- invertible, glow: `Invertible`: `SpaceToDepth`, `Permute`, `Swap`, `InvertibleDense`, `ActNorm`.
- step: `StatelessStep`, a step with given values; its `Residuals`, what its backward pass has of the forward
  pass; `Gradients`. It can `run`, `rebuild` the streams before it, and `undo`: rebuild, with gradients.
- segments: `run_rebuilding`, `run_stored`, of parts that are `Unrolled`, or a `Loop` (loop). partition: which
  steps are a `Segment`, and by their `likeness` which units are a loop.
- ordering: `wait_for` and its six rules; `released_together`.
- backward: `Store`, `Rebuild`, `ordinary_backprop`: how gradients are computed.
- plan: `ActivationPlan`, what each step is to `Keep`, from the costs of its traced undoing.
- stateless: `StatelessLayers`, layers as functions of weights and state; an `Evaluation` of them, and what is
  `Saved` by it for the recomputation, of two kinds, statistics and activations.
- replay: `replayed`, `keep_output`, by which a layer's author saves; recompute: `Recompute`.
- custom_vjp: `Boundary`, behind which gradients are the engine's own; `custom_vjp`.
- inspection: `require_repeatable`, which looks at a traced function before its first run.
- arguments: `Call`, what a chain was called with; masks: Keras' masks of streams; grid: `on_grid`, the exact
  mode; checks: what is refused early; memory: `memory_report`; private_apis: what TensorFlow and Keras do not
  promise to keep.
"""

from resnet.reversible.backward import Rebuild, Store, ordinary_backprop
from resnet.reversible.chain import ReversibleChain
from resnet.reversible.coupling import Additive, Affine, Coupling, Scaled, Shortcut
from resnet.reversible.glow import ActNorm, InvertibleDense
from resnet.reversible.invertible import Invertible, Permute, SpaceToDepth, Swap
from resnet.reversible.memory import MemoryReport, memory_report
from resnet.reversible.plan import ActivationPlan, Keep
from resnet.reversible.recompute import Recompute, recompute
from resnet.reversible.replay import keep_output, replayed

__all__ = [
  "ActNorm",
  "ActivationPlan",
  "Additive",
  "Affine",
  "Coupling",
  "Invertible",
  "InvertibleDense",
  "Keep",
  "MemoryReport",
  "Permute",
  "Rebuild",
  "Recompute",
  "ReversibleChain",
  "Scaled",
  "Shortcut",
  "SpaceToDepth",
  "Store",
  "Swap",
  "keep_output",
  "memory_report",
  "ordinary_backprop",
  "recompute",
  "replayed",
]
