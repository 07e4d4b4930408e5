"""Reversible networks of any kind: backpropagation that rebuilds activations instead of storing them."""

from resnet.reversible.chain import ReversibleChain
from resnet.reversible.coupling import Additive, Affine, Coupling, Scaled, Shortcut
from resnet.reversible.gate import ordinary_backprop
from resnet.reversible.memory import MemoryReport, memory_report
from resnet.reversible.recompute import Recompute, recompute
from resnet.reversible.replay import keep_output, replayed

__all__ = [
  "Additive",
  "Affine",
  "Coupling",
  "MemoryReport",
  "Recompute",
  "ReversibleChain",
  "Scaled",
  "Shortcut",
  "keep_output",
  "memory_report",
  "ordinary_backprop",
  "recompute",
  "replayed",
]
