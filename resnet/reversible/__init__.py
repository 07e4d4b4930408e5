"""Reversible networks of any kind: backpropagation that rebuilds activations instead of storing them.

The ideas of this package, in reading order, each with the module that has it:

- plain: a chain changes two streams by steps: F or G of a unit (`CouplingStep`), or a layer of both streams
  (`InvertibleStep`). `run_plainly` is what all else must equal. `on_grid` is the exact mode.
- chain: `ReversibleChain`, the Keras layer. It runs in segments: plainly, rebuilding, stored, or as a loop.
- coupling: `Coupling`, how a function changes a stream: `Additive`, `Scaled`, `Affine`, `Shortcut`.
- invertible, glow: `Invertible`: `SpaceToDepth`, `Permute`, `Swap`, `InvertibleDense`, `ActNorm`.
- step: `StatelessStep`, a step as a function of `Given` values; its `Residuals`, what its backward pass has of
  the forward pass. It can `run`, `rebuild` the streams before it, and `undo`: rebuild, with gradients. So can
  several of them, a `StepSequence`, and (loop) units that are alike, a `Loop`.
- segments: which steps are a `Segment`; `run_rebuilding`, `run_stored`.
- backward: `Store`, `Rebuild`: how gradients are computed.
- plan: `ActivationPlan`, what each step is to `Keep`, from the costs of its traced undoing.
- checks: what is refused early.

Below it is resnet.recomputation, which runs Keras layers a second time and imports nothing from here. What
users need of it is imported from here, too.
"""

from resnet.recomputation.contexts import ordinary_backprop
from resnet.recomputation.memory import MemoryReport, memory_report
from resnet.recomputation.recompute import Recompute, recompute
from resnet.recomputation.replay import keep_output, replayed
from resnet.reversible.backward import Keep, Rebuild, Store
from resnet.reversible.chain import ReversibleChain
from resnet.reversible.coupling import Additive, Affine, Coupling, Scaled, Shortcut
from resnet.reversible.glow import ActNorm, InvertibleDense
from resnet.reversible.invertible import Invertible, Permute, SpaceToDepth, Swap
from resnet.reversible.plan import ActivationPlan

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
