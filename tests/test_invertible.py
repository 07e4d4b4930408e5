"""Layers of both streams that can be undone: both directions, gradients, log-determinants; as Keras layers."""

import itertools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import assert_close, values

from resnet.reversible.glow import ActNorm, InvertibleDense
from resnet.reversible.invertible import Invertible, Permute, SpaceToDepth, Swap

ORDER = [3, 0, 6, 2, 5, 1, 4]
EXACT = {
  "space_to_depth": (SpaceToDepth, [(4, 6, 3), (2, 4, 4)]),
  "space_to_depth_3": (lambda: SpaceToDepth(block=3), [(3, 6, 2), (3, 6, 2)]),
  "permute": (lambda: Permute(ORDER), [(3,), (4,)]),
  "permute_images": (lambda: Permute(ORDER), [(2, 3, 5), (2, 3, 2)]),
  "swap": (Swap, [(2, 3), (5,)]),
}
LEARNED = {
  "dense": (InvertibleDense, [(3,), (4,)]),
  "dense_texts": (InvertibleDense, [(5, 4), (5, 1)]),
  "dense_images": (InvertibleDense, [(2, 3, 2), (2, 3, 2)]),
  "dense_volumes": (InvertibleDense, [(2, 1, 2, 2), (2, 1, 2, 1)]),
  "act_norm": (ActNorm, [(3,), (4,)]),
  "act_norm_images": (ActNorm, [(2, 3, 2), (4, 1, 3)]),
}
CASES = EXACT | LEARNED
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}
RUNS = {"eager": lambda f: f, "graph": tf.function, "xla": tf.function(jit_compile=True)}


def make(case, dtype="float64", examples=2):
  """(a built layer, its variables away from where they start; two streams)."""
  make_layer, shapes = CASES[case]
  keras.utils.set_random_seed(1)
  layer, random = make_layer(), np.random.RandomState(2)
  streams = [tf.constant(random.normal(size=(examples, *shape)), dtype) for shape in shapes]
  with_dtype = type(layer).from_config({**layer.get_config(), "dtype": dtype})
  with_dtype.build([(None, *shape) for shape in shapes])
  for variable in with_dtype.variables:
    variable.assign(variable + random.normal(scale=0.2, size=variable.shape))
  return with_dtype, streams


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_each_direction_undoes_the_other(case, dtype, run):
  layer, streams = make(case, dtype)
  call, inverse = run(lambda x1, x2: layer.call([x1, x2])), run(lambda y1, y2: layer.inverse([y1, y2]))
  outputs = call(*streams)
  assert [y.shape for y in outputs] == layer.compute_output_shape([x.shape for x in streams])
  assert {y.dtype.name for y in outputs} == {dtype}
  assert not any(x.shape == y.shape and np.array_equal(x, y) for x, y in zip(streams, outputs))
  assert_close(inverse(*outputs), streams, 0 if case in EXACT else TOLERANCE[dtype])
  outputs = [tf.constant(np.random.RandomState(3).normal(size=y.shape), dtype) for y in outputs]
  assert_close(call(*inverse(*outputs)), outputs, 0 if case in EXACT else TOLERANCE[dtype])


def loss_of(layer, streams):
  """A loss of both outputs and of the log-determinants, a scalar."""
  y1, y2 = layer.call(streams)
  return tf.reduce_sum(tf.sin(y1)) + tf.reduce_sum(y2**3) + tf.reduce_sum(tf.sin(layer.log_det(streams)))


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_finite_differences(case):
  layer, values_of_streams = make(case)
  sources = [tf.Variable(stream) for stream in values_of_streams]
  sources += [variable.value for variable in layer.trainable_variables]

  def gradients():
    with tf.GradientTape() as tape:
      loss = loss_of(layer, [tf.convert_to_tensor(source) for source in sources[:2]])
    return tape.gradient(loss, sources)

  actual, step = [run(gradients)() for run in RUNS.values()], 1e-5
  for source, *of_runs in zip(sources, *actual, strict=True):
    start, expected = source.numpy(), np.zeros(source.shape)
    for index in np.ndindex(*source.shape):
      losses = []
      for sign in (1, -1):
        moved = start.copy()
        moved[index] += sign * step
        source.assign(moved)
        losses.append(loss_of(layer, [tf.convert_to_tensor(one) for one in sources[:2]]))
      expected[index] = (losses[0] - losses[1]) / (2 * step)
    source.assign(start)
    assert_close(of_runs, [expected] * len(RUNS), 1e-7, RUNS)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-8)])
@pytest.mark.parametrize("case", CASES)
def test_log_det_is_that_of_the_jacobian(case, dtype, tolerance):
  layer, streams = make(case, dtype)
  actual = layer.log_det(streams)
  assert (actual.shape, actual.dtype) == ((2,), dtype)
  unknown = [tf.TensorSpec([None] * (len(x.shape) - 1) + [x.shape[-1]], dtype) for x in streams]
  np.testing.assert_array_equal(tf.function(layer.log_det, input_signature=[unknown])(streams), actual)
  for example, log_det in enumerate(actual):
    x = [stream[example : example + 1] for stream in streams]
    with tf.GradientTape(persistent=True) as tape:
      tape.watch(x)
      y = tf.concat([tf.reshape(one, [-1]) for one in layer.call(x)], axis=0)
    jacobian = np.concatenate([np.reshape(tape.jacobian(y, one), [len(y), -1]) for one in x], axis=1)
    _, expected = np.linalg.slogdet(jacobian)
    if case in EXACT:
      assert log_det == expected == 0
    else:
      assert abs(expected) > 0.01
      assert_close([log_det], [expected], tolerance)


@pytest.mark.parametrize("block", [2, 3])
def test_space_to_depth_is_its_equation(block):
  x = np.random.RandomState(0).normal(size=(2, 2 * block, 3 * block, 4))
  outputs = SpaceToDepth(block)([x, x[..., :1]])
  for stream, y in zip((x, x[..., :1]), outputs, strict=True):
    channels, expected = stream.shape[-1], np.zeros(y.shape)
    for h, w, i, j in np.ndindex(2, 3, block, block):
      first = (block * i + j) * channels
      expected[:, h, w, first : first + channels] = stream[:, block * h + i, block * w + j]
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_layers_of_the_channels_are_their_equations(shape):
  random = np.random.RandomState(0)
  x1, x2 = random.normal(size=(2, *shape, 3)), random.normal(size=(2, *shape, 4))
  x = np.concatenate([x1, x2], axis=-1)

  def assert_equal(layer, expected):
    y1, y2 = layer([x1, x2])
    np.testing.assert_allclose(np.concatenate([y1, y2], axis=-1), expected, rtol=1e-12, atol=1e-12)

  assert_equal(Permute(ORDER), np.take(x, ORDER, axis=-1))
  dense = InvertibleDense()
  dense([x1, x2])
  assert_equal(dense, np.einsum("...c,cd->...d", x, dense.kernel.numpy().astype("float64")))
  norm = ActNorm()
  assert_equal(norm, x)
  norm.bias.assign(random.normal(size=7))
  norm.log_scale.assign(random.normal(size=7))
  bias, log_scale = (variable.numpy().astype("float64") for variable in (norm.bias, norm.log_scale))
  assert_equal(norm, (x + bias) * np.exp(log_scale))


def test_swap_gives_the_other_stream():
  x1, x2 = np.zeros([2, 3]), np.ones([2, 4])
  y1, y2 = Swap()([x1, x2])
  np.testing.assert_array_equal(y1, x2)
  np.testing.assert_array_equal(y2, x1)


@pytest.mark.parametrize("policy", ["float32", "bfloat16", "mixed_bfloat16", "float64"])
def test_the_kernel_is_orthogonal_at_first(policy):
  layer = InvertibleDense(dtype=policy)
  layer.build([(None, 5), (None, 3)])
  kernel = layer.kernel.numpy().astype("float64")
  np.testing.assert_allclose(kernel @ kernel.T, np.eye(8), atol=1e-6)
  assert np.abs(kernel - np.eye(8)).max() > 0.1


def test_a_dense_inverse_in_float32_is_as_precise_as_solving():
  layer, _ = make("dense", "float32")
  random = np.random.RandomState(0)
  x = random.normal(size=(1000, 7)).astype("float32")
  left, _, right = np.linalg.svd(random.normal(size=(7, 7)))
  layer.kernel.assign(left @ np.diag(np.geomspace(1, 1e-3, 7)) @ right)
  y = np.concatenate(layer([x[:, :3], x[:, 3:]]), axis=1)
  rebuilt = np.concatenate(layer.inverse([y[:, :3], y[:, 3:]]), axis=1)
  solved = np.linalg.solve(layer.kernel.numpy().T, y.T).T
  assert solved.dtype == np.float32
  assert np.linalg.norm(rebuilt - x) < 1.5 * np.linalg.norm(solved - x)


def test_adapted_streams_have_mean_0_and_variance_1():
  random = np.random.RandomState(0)
  x1 = (random.normal(size=(20, 3, 4, 2)) * [0.01, 5] + [100, -3]).astype("float32")
  x2 = (random.normal(size=(20, 2, 2, 3)) * [1, 0, 2] + [0, 0.1, 7]).astype("float32")  # One is constant.
  layer = ActNorm()
  layer.adapt([x1, x2])
  x = [stream.reshape([-1, stream.shape[-1]]).astype("float64") for stream in (x1, x2)]
  mean = np.concatenate([one.mean(axis=0) for one in x])
  deviation = np.concatenate([one.std(axis=0) for one in x])
  deviation[3] = 1
  np.testing.assert_allclose(layer.bias, -mean, rtol=1e-6)
  np.testing.assert_allclose(layer.log_scale, -np.log(deviation), rtol=1e-6, atol=1e-6)
  for y, constant in zip(layer([x1, x2]), ([False, False], [False, True, False]), strict=True):
    np.testing.assert_allclose(np.mean(y, axis=(0, 1, 2)), 0, atol=1e-3)  # 100 is rounded, to 1e-3 of 0.01.
    np.testing.assert_allclose(np.var(y, axis=(0, 1, 2)), np.where(constant, 0, 1), atol=1e-3)


@pytest.fixture
def model():
  """Images [N, H, W, 4] through every layer, on streams of two and of eight channels."""
  keras.utils.set_random_seed(1)
  x = keras.Input([None, None, 4])
  streams = keras.ops.split(x, 2, axis=-1)
  for layer in (ActNorm(), InvertibleDense(), Swap(), SpaceToDepth(), Permute([*range(15, -1, -1)]), ActNorm()):
    streams = layer(streams)
  model = keras.Model(x, keras.layers.Dense(2)(keras.ops.concatenate(streams, axis=-1)))
  for variable in model.variables:
    variable.assign(variable + np.random.RandomState(0).normal(scale=0.1, size=variable.shape))
  return model


def test_a_functional_model_is_saved_and_loaded(model, tmp_path):
  assert model.output_shape == (None, None, None, 2)
  x = np.random.RandomState(1).normal(size=(3, 4, 6, 4)).astype("float32")
  outputs = model(x)
  assert outputs.shape == (3, 2, 3, 2)
  model.save(tmp_path / "model.keras")
  loaded = keras.models.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(loaded(x), outputs)
  tf.train.Checkpoint(model).write(str(tmp_path / "checkpoint"))
  before = values(model.variables)
  assert len(before) == 2 + 1 + 2 + 2
  for variable in model.variables:
    variable.assign(0 * variable)
  tf.train.Checkpoint(model).read(str(tmp_path / "checkpoint")).assert_consumed()
  assert_close(values(model.variables), before, 0)


def test_a_functional_model_trains(model):
  model.compile("sgd", "mse")
  random, before = np.random.RandomState(1), values(model.variables)
  x = random.normal(size=(8, 4, 4, 4)).astype("float32")
  losses = model.fit(x, random.normal(size=(8, 2, 2, 2)), epochs=20, verbose=0).history["loss"]
  assert losses[-1] < losses[0]
  assert not any(np.array_equal(one, other) for one, other in zip(values(model.variables), before))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_streams_are_float32_in_half_precision(case, policy):
  _, streams = make(case, "float32")
  make_layer, shapes = CASES[case]
  keras.config.set_dtype_policy(policy)
  try:
    layer = make_layer()
    symbolic = layer([keras.Input(shape, dtype="bfloat16") for shape in shapes])
  finally:
    keras.config.set_dtype_policy("float32")
  outputs = layer(streams)
  assert {y.dtype for y in symbolic} == {y.dtype.name for y in outputs} == {"float32"}
  assert {variable.dtype for variable in layer.variables} <= {"float32"}
  assert_close(layer.inverse(outputs), streams, 1e-5)
  assert layer([tf.cast(stream, "bfloat16") for stream in streams])[0].dtype == "float32"


def test_masks_go_with_their_streams():
  tokens = np.array([[1, 2, 0], [3, 0, 0]])
  inputs = keras.Input([3]), keras.Input([3, 4])
  embedded = keras.layers.Embedding(5, 4, mask_zero=True)(inputs[0])
  for layer, first in (
    (Swap(), False),
    (InvertibleDense(), True),
    (ActNorm(), True),
    (Permute(range(8)), True),
  ):
    outputs = layer([embedded, inputs[1]])
    for masked, stream in ((first, outputs[0]), (not first, outputs[1])):
      # Pooling takes the mask that its input carries.
      pooled = keras.Model(inputs, [keras.layers.GlobalAveragePooling1D()(stream), stream])
      mean, y = pooled([tokens, np.random.RandomState(0).normal(size=(2, 3, 4))])
      weights = (tokens > 0 if masked else np.ones([2, 3]))[..., None]
      np.testing.assert_allclose(mean, np.sum(y * weights, axis=1) / np.sum(weights, axis=1), rtol=1e-5)
  assert not SpaceToDepth().supports_masking


def test_what_a_layer_lacks_is_named():
  class Bare(Invertible):
    pass

  streams = [np.ones([2, 3])] * 2
  for method in ("call", "inverse", "log_det"):
    with pytest.raises(NotImplementedError, match=rf"Bare has no {method}\(streams\)"):
      getattr(Bare(), method)(streams)
  Bare.exact = True
  np.testing.assert_array_equal(Bare().log_det(streams), [0, 0])


@pytest.mark.parametrize("block", [1, 0, -2, 2.0, "2", None])
def test_a_block_that_is_none_is_refused(block):
  with pytest.raises(ValueError, match=f"block must be an integer from 2; got {block!r}"):
    SpaceToDepth(block)


@pytest.mark.parametrize("order", [[0, 0], [1, 2], [0, 1.5], [0, -1]])
def test_an_order_that_is_no_permutation_is_refused(order):
  with pytest.raises(ValueError, match=r"order must have each of the channels. numbers, from 0, once; got "):
    Permute(order)


@pytest.mark.parametrize("symbolic", [False, True])
def test_streams_that_do_not_fit_are_refused(symbolic):
  for layer, shapes, message in (
    (SpaceToDepth(), [(2, 4, 4, 3), (2, 4, 5, 3)], "streams must be [N, H, W, C], 2 dividing H and W; got "),
    (SpaceToDepth(3), [(2, 4, 6, 3), (2, 6, 6, 3)], "streams must be [N, H, W, C], 3 dividing H and W; got "),
    (SpaceToDepth(), [(2, 4, 3), (2, 4, 3)], "streams must be [N, H, W, C], 2 dividing H and W; got "),
    (Permute([1, 0, 2]), [(2, 1), (2, 1)], "order is of 3 channels, the streams have 1 + 1"),
    *((layer(), [(2, 4)], "takes two streams, (x1, x2), got 1 inputs") for layer in (Swap, InvertibleDense)),
    (ActNorm(), [(2, 4)] * 3, "takes two streams, (x1, x2), got 3 inputs"),
  ):
    with pytest.raises(ValueError, match=re.escape(message)):
      layer([keras.Input(shape[1:]) if symbolic else np.ones(shape) for shape in shapes])
  for layer in (Swap(), ActNorm()):
    with pytest.raises(ValueError, match="the streams must be float tensors, x2 is int64"):
      layer.inverse([np.ones([2, 3]), np.ones([2, 3], "int64")])


def test_unknown_channels_are_refused():
  for layer, unknown in itertools.product((ActNorm, InvertibleDense), ((None, 3), (None, None))):
    shapes = [unknown, (None, None)]
    with pytest.raises(ValueError, match="must know how many channels the streams have"):
      layer().build(shapes)
