"""The example of docs/fidelity.md does what it says."""

import pathlib
import re

import numpy as np
import tensorflow as tf
from parity_cases import FOLDER, case_config, expected
from tf1_files import write_archive

DOC = pathlib.Path(__file__).parents[1] / "docs" / "fidelity.md"
CASE = "revnet-imagenet-tiny"  # In the place of the published network, which has 45 million parameters.


def test_the_example_of_the_published_weights(tmp_path, monkeypatch):
  (example,) = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
  files = ("checkpoint", "model.ckpt-0.index", "model.ckpt-0.data-00000-of-00001")
  write_archive(
    tmp_path / "revnet-104.tar.gz",
    [(f"revnet-104/{name}", (FOLDER / CASE / name).read_bytes()) for name in files],
  )
  picture = np.random.RandomState(0).randint(0, 256, (80, 96, 3)).astype("uint8")
  tf.io.write_file(str(tmp_path / "image.jpg"), tf.io.encode_jpeg(picture))
  monkeypatch.chdir(tmp_path)
  asked = []
  monkeypatch.setattr("resnet.configs.get_config", lambda name: asked.append(name) or case_config(CASE))

  names: dict = {}
  exec(example, names)

  assert asked == ["revnet-104"]
  probabilities = tf.nn.softmax(names["network"](expected(CASE)["x"]))
  np.testing.assert_allclose(probabilities, expected(CASE)["eval_probabilities"], rtol=1e-5, atol=1e-7)
  # The central 87.5 % of the picture, resized as TensorFlow 1 did, values from -1 to 1.
  decoded = tf.io.decode_jpeg((tmp_path / "image.jpg").read_bytes(), channels=3)
  centre = tf.image.central_crop(tf.cast(decoded, tf.float32), 0.875)
  image = tf.compat.v1.image.resize_bilinear(centre[tf.newaxis], [64, 64]) / 127.5 - 1
  seen = tf.nn.softmax(names["network"](image))
  np.testing.assert_allclose(names["probabilities"], seen, atol=1e-3)
  assert names["probabilities"].shape == (1, 7)
  assert len(names["features"]) == len(case_config(CASE).num_residual_units) + 1
