"""Keras layers as pure functions, which the backward pass can run a second time.

The ideas of this package, in reading order, each with the module that has it:

- recompute: `Recompute`, a layer of which only the inputs are kept: the smallest user of all that follows.
- stateless: `StatelessLayers`, layers as functions of weights and state; an `Evaluation` of them, and what is
  `Saved` by it for the recomputation, of two kinds, statistics and activations.
- replay: `replayed`, `keep_output`, by which a layer's author saves.
- custom_vjp: `Boundary`, behind which gradients are the engine's own; `custom_vjp`.
- ordering: `wait_for` and its six rules; `released_together`.
- inspection: `require_repeatable`, which looks at a traced function before its first run.
- costs: the `Cost` of a traced function. likeness: which layers are alike.
- arguments: `Values`, a structure by value; `Call`, what a layer was called with. masks: Keras' masks.
  building: layers from shapes and calls.
- contexts: what is in force in a `with`, `ordinary_backprop` among it; memory: `memory_report`, which compares
  with it.
- private_apis: what TensorFlow and Keras do not promise to keep.
"""
