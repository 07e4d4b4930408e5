"""Keras' masks in chains and recomputed layers are those of plain Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from any_layer import attention, by_hand, dense, eager_and_graph, gradients, random
from chains import RUNS
from helpers import assert_close

from resnet.reversible import Rebuild, Recompute, ReversibleChain, recompute


class Attends(keras.layers.Layer):
  """Normalises and attends to itself; Keras' attention finds the mask that its input carries."""

  def __init__(self, supports_masking=True):
    super().__init__(dtype="float64")
    self.supports_masking = supports_masking
    self.norm, self.attention = keras.layers.LayerNormalization(dtype="float64"), attention()

  def build(self, input_shape):
    self.norm.build(input_shape)
    self.attention.build(input_shape, input_shape)

  def call(self, x):
    h = self.norm(x)
    h = self.attention(h, h)  # Carries the mask, too.
    return h if self.supports_masking else tf.identity(h)


MASKED = {
  "attention": Attends,
  "attention that drops the mask": lambda: Attends(supports_masking=False),
  "recurrent": lambda: keras.layers.Bidirectional(
    keras.layers.GRU(2, return_sequences=True, dtype="float64"), dtype="float64"
  ),
  "masking": lambda: keras.Sequential(
    [keras.layers.Masking(1.0, dtype="float64"), keras.layers.GRU(4, return_sequences=True, dtype="float64")]
  ),
}


@pytest.mark.parametrize(
  ("kind", "loop", "run"),
  [
    (kind, loop, run)
    for k, kind in enumerate(MASKED)
    for loop, run in zip((False, True), ("eager", "graph") if k % 2 else ("graph", "eager"), strict=True)
  ],
)
def test_masks_are_those_of_plain_keras(kind, loop, run):
  keras.utils.set_random_seed(0)
  tokens = tf.constant([[1, 2, 0, 0, 0], [1, 2, 3, 4, 1]])
  embeddings = [keras.layers.Embedding(5, 4, mask_zero=True, dtype="float64") for _ in "12"]
  chain = ReversibleChain(
    [(MASKED[kind](), dense()) for _ in "12"], backward=Rebuild(loop=loop), dtype="float64"
  )
  chain.build([(2, 5, 4)] * 2)
  masks = []

  def step(call):
    def embedded():
      streams = call([embedding(tokens) for embedding in embeddings])
      masks.append([getattr(y, "_keras_mask", None) is not None for y in streams])
      return streams

    return RUNS[run](lambda: gradients(embedded, [], chain.weights))()

  embeddings[0](tokens), embeddings[1](tokens)
  right = step(lambda streams: by_hand(chain, streams))
  if kind == "attention that drops the mask" and loop:
    with pytest.raises(
      ValueError, match="needs units that hand Keras' masks on, but behind F of unit 0 .*loop=False"
    ):
      step(chain)
    return
  assert_close(step(chain), right, 1e-12)
  assert masks[0] == masks[-1] == [kind != "attention that drops the mask"] * 2


@eager_and_graph
def test_masks_that_inputs_and_arguments_of_a_recomputed_layer_carry(run):
  layer, embedding = attention(), keras.layers.Embedding(5, 4, mask_zero=True, dtype="float64")
  layer.build((2, 3, 4), (2, 3, 4))
  again = Recompute(layer, dtype="float64")
  tokens = tf.constant([[1, 2, 0], [3, 0, 0]])
  x = random(2, 3, 4)
  for call in (again, lambda *x, **kwargs: recompute(layer, *x, **kwargs)):
    ours = run(lambda call=call: gradients(lambda: (call(x, value=embedding(tokens)), x), [x], layer.weights))()
    right = gradients(lambda: (layer(x, value=embedding(tokens)), x), [x], layer.weights)
    assert_close(ours, right, 1e-12)
  assert np.any(layer(x, value=embedding(tokens)) != layer(x, value=tf.identity(embedding(tokens))))


def test_padding_does_not_change_valid_positions_in_a_functional_model():
  keras.utils.set_random_seed(0)
  tokens = keras.Input([5], dtype="int64")
  embedding = keras.layers.Embedding(5, 4, mask_zero=True, embeddings_initializer="normal", dtype="float64")
  streams = ReversibleChain([(Attends(), dense()) for _ in "123"], dtype="float64")((embedding(tokens),) * 2)
  model, batch = keras.Model(tokens, streams[0]), np.array([[1, 2, 0, 0, 0]])
  before = model(batch).numpy()
  table = embedding.get_weights()[0]
  table[0] += 10
  embedding.set_weights([table])
  np.testing.assert_array_equal(model(batch)[:, :2], before[:, :2])
  assert np.any(model(batch)[:, 2:] != before[:, 2:])
