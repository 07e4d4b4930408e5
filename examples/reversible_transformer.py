"""A reversible transformer encoder that reads handwritten digits row by row.

Shows two functions that are functional models, F with attention and G without, in a chain in a `keras.Model`.

PYTHONPATH=. python examples/reversible_transformer.py

Source: Kitaev, Kaiser, Levskaya 2020, "Reformer: The Efficient Transformer", section 3.
"""

import keras
from keras import layers

from resnet.data.digits import SIZE, load_digits
from resnet.reversible import ReversibleChain


def attention(length: int, width: int, heads: int, rate: float) -> keras.Model:
  """F: layer normalisation and multi-head self-attention, [N, length, width] to the same."""
  x = keras.Input([length, width])
  h = layers.LayerNormalization()(x)
  h = layers.MultiHeadAttention(heads, width // heads)(h, h)
  return keras.Model(x, layers.Dropout(rate)(h))


def mlp(length: int, width: int, rate: float) -> keras.Model:
  """G: layer normalisation and two dense layers, of each row by itself."""
  x = keras.Input([length, width])
  h = layers.LayerNormalization()(x)
  h = layers.Dense(4 * width, activation="gelu")(h)
  h = layers.Dense(width)(h)
  return keras.Model(x, layers.Dropout(rate)(h))


def make_model(units: int, width: int, heads: int, rate: float) -> keras.Model:
  """Rows of pixels [N, SIZE, SIZE] -> logits [N, 10]."""
  rows = keras.Input([SIZE, SIZE])
  # A bias for each row and channel is a learned embedding of positions.
  x = layers.EinsumDense("nrp,pc->nrc", (SIZE, width), bias_axes="rc", bias_initializer="random_normal")(rows)
  functions = [(attention(SIZE, width, heads, rate), mlp(SIZE, width, rate)) for _ in range(units)]
  x = layers.Concatenate()(ReversibleChain(functions, name="encoder")((x, x)))
  x = layers.LayerNormalization()(x)
  x = layers.GlobalAveragePooling1D()(x)
  return keras.Model(rows, layers.Dense(10)(x))


def main(units: int = 4, width: int = 64, heads: int = 4, rate: float = 0.1, epochs: int = 25) -> float:
  """Trains, prints and returns the accuracy on the test images."""
  keras.utils.set_random_seed(0)
  digits = {
    split: (images[..., 0].astype("float32") / 255, labels) for split, (images, labels) in load_digits().items()
  }
  images, labels = digits["train"]
  batch = 50
  model = make_model(units, width, heads, rate)
  learning_rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * len(images) // batch)
  model.compile(
    keras.optimizers.AdamW(learning_rate, weight_decay=0.01),
    keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
  )
  model.fit(images, labels, batch, epochs, verbose=2)
  _, accuracy = model.evaluate(*digits["test"], verbose=0)
  print(f"test accuracy {100 * accuracy:.2f} %")
  return accuracy


if __name__ == "__main__":
  main()
