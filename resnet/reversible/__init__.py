"""Reversible networks of any kind: backpropagation that rebuilds activations instead of storing them."""

from resnet.reversible.backward import Rebuild, Store, ordinary_backprop
from resnet.reversible.chain import ReversibleChain
from resnet.reversible.coupling import Additive, Affine, Coupling, Scaled, Shortcut
from resnet.reversible.invertible import ActNorm, Invertible, InvertibleDense, Permute, SpaceToDepth, Swap
from resnet.reversible.memory import MemoryReport, memory_report
from resnet.reversible.plan import ActivationPlan
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
