"""Trained networks in use: preprocessing, exports and their accuracy, pictures classified by command."""

import base64
import csv
import dataclasses
import io
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import ROOT, make_batch, make_model, relative_difference
from imagenet_helpers import classic_example, cmyk_jpeg, jpeg, picture, small_config, write_records
from test_backbone import make_backbone, make_task

from resnet.configs import get_config
from resnet.data import get_dataset
from resnet.data.class_names import known_class_names
from resnet.data.digits import load_digits
from resnet.data.image_arrays import ImageArrays
from resnet.data.preprocessing import Preprocessing
from resnet.experiments.experiment import Experiment
from resnet.tools import classify
from resnet.tools.export_checkpoint import export_checkpoint
from resnet.trained import load_classifier, tflite
from resnet.trained.loading import class_names_of
from resnet.training.checkpoint import Checkpoints
from resnet.training.evaluate import make_evaluate
from resnet.training.optimizer import make_optimizer
from resnet.utils.errors import UserError

TINY = {"num_residual_units": (1, 1), "filters": (4, 4, 8), "strides": (1, 2), "num_classes": 10}
COUNT = 520  # of the ImageNet records; 500 of the digits


def make_network(name, **fields):
  """A tiny network."""
  return make_model(name, **TINY, **fields)


def tell_apart(model, data):
  """Moves the classifier so that its guesses differ from picture to picture."""
  images, _ = next(iter(data.evaluation_batches(1)))
  logits = model(images).numpy()
  spread = logits.std(0)
  model.logit.kernel.assign(model.logit.kernel / spread)
  model.logit.bias.assign((model.logit.bias - logits.mean(0)) / spread)


def experiment_of(folder, model):
  """An experiment with a checkpoint of the network."""
  experiment = Experiment.named(model.config.name, str(folder / "results"), "")
  experiment.create(model.config)
  Checkpoints(experiment.folder, model, make_optimizer(model.config, model)).save(3)
  return experiment


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
  """(experiment, network, folder of its export, the dataset to evaluate on)."""
  folder = tmp_path_factory.mktemp("digits")
  model = make_network("revnet-38", dataset="digits")
  data = get_dataset(model.config, "", "train")
  tell_apart(model, data)
  experiment = experiment_of(folder, model)
  experiment.save_mean_image(data.preprocessing.mean_image)
  (experiment.folder / "class_names.txt").write_text("".join(f"digit {k}\n" for k in range(10)))
  export_checkpoint(experiment, folder / "exported")
  return experiment, model, folder / "exported", data


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
  """The same of an ImageNet network, on records of pictures of several sizes."""
  folder = tmp_path_factory.mktemp("imagenet")
  fields = {name: getattr(small_config(), name) for name in ("height", "width", "valid_batch_size")}
  model = make_network("resnet-50", use_bottleneck=False, **fields)
  records = [classic_example(jpeg(k, 40, 50 + k % 7), 1 + k % 10) for k in range(COUNT)]
  (folder / "data").mkdir()
  write_records(folder / "data/validation-00000-of-00001", records)
  data = get_dataset(model.config, folder / "data", "validation")
  tell_apart(model, data)
  experiment = experiment_of(folder, model)
  export_checkpoint(experiment, folder / "exported", ["saved_model"])
  return experiment, model, folder / "exported", data


def png(image):
  return tf.io.encode_png(image).numpy()


def digit_pictures():
  """([500] files, the pictures, their labels)."""
  images, labels = (part[:500] for part in load_digits()["train"])
  return [png(image) for image in images], images, labels


def served(export, pictures, signature="serving_default"):
  """Probabilities of all pictures by an export's signature."""
  model = tf.saved_model.load(str(export / "saved_model")).signatures[signature]
  batches = [pictures[start : start + 100] for start in range(0, len(pictures), 100)]
  return np.concatenate([model(pictures=tf.constant(batch))["probabilities"] for batch in batches])


@pytest.mark.parametrize("signature", ["serving_default", "pixels"])
def test_a_cifar_export_is_as_accurate_as_the_evaluation(digits, signature):
  _, model, export, data = digits
  files, images, labels = digit_pictures()
  probabilities = served(export, files if signature == "serving_default" else images, signature)
  (accuracy,) = make_evaluate(model, tf.distribute.get_strategy())(data.evaluation_batches(5))
  assert np.mean(probabilities.argmax(1) == labels) == accuracy
  batches = [images for images, _ in data.evaluation_batches(5)]
  np.testing.assert_allclose(probabilities, tf.nn.softmax(model(np.concatenate(batches))), atol=1e-5)
  assert len(set(probabilities.argmax(1))) > 5


def test_an_imagenet_export_is_as_accurate_as_the_evaluation(imagenet):
  _, model, export, data = imagenet
  files = [jpeg(k, 40, 50 + k % 7) for k in range(COUNT)]
  probabilities = served(export, files)
  (accuracy,) = make_evaluate(model, tf.distribute.get_strategy())(data.evaluation_batches())
  assert np.mean(probabilities.argmax(1) == np.arange(COUNT) % 10) == accuracy
  batches = [images for images, _ in data.evaluation_batches()]
  np.testing.assert_allclose(probabilities, tf.nn.softmax(model(np.concatenate(batches))), atol=1e-5)
  assert len(set(probabilities.argmax(1))) > 5


def test_a_new_process_serves_without_this_package_and_loads_a_backbone_with_it(digits, tmp_path):
  _, model, export, data = digits
  task = make_task(make_backbone("revnet-test")[0], eagerly=True)
  batch, batch_labels = make_batch(task.layers[1], size=6)
  task.fit(batch, batch_labels % 2, batch_size=6, verbose=0)
  features = task.layers[1].features(task.input)
  both = keras.Model(task.input, {**features, "logits": task(task.input)})
  both.save(tmp_path / "both.keras")
  np.save(tmp_path / "batch.npy", batch)
  files, images, _ = digit_pictures()
  request = {"instances": [{"b64": base64.b64encode(file).decode()} for file in files[:3]]}
  code = (
    "import base64, json, sys, tensorflow as tf\n"
    "instances = json.loads(sys.argv[2])['instances']\n"
    "model = tf.saved_model.load(sys.argv[1]).signatures['serving_default']\n"
    "((name, _),) = model.structured_input_signature[1].items()\n"
    "given = tf.constant([base64.b64decode(instance['b64']) for instance in instances])\n"
    "outputs = {name: x.numpy() for name, x in model(**{name: given}).items()}\n"
    "assert not any(module.startswith('resnet') for module in sys.modules)\n"
    "rows = [{name: x[row].tolist() for name, x in outputs.items()} for row in range(len(instances))]\n"
    "print(json.dumps({'predictions': rows}, default=bytes.decode))\n"
    "sys.path.insert(0, sys.argv[3])\n"
    "import keras, numpy as np, resnet.models\n"
    "tf.config.experimental.enable_op_determinism()\n"
    "outputs = keras.models.load_model('both.keras')(np.load('batch.npy'))\n"
    "np.savez('outputs.npz', **{name: x.numpy() for name, x in outputs.items()})\n"
  )
  environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  done = subprocess.run(
    [sys.executable, "-c", code, str(export / "saved_model"), json.dumps(request), str(ROOT)],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  expected = tf.nn.softmax(model(data.preprocessing.standardised(images[:3])))
  for row, probabilities in zip(json.loads(done.stdout)["predictions"], expected, strict=True):
    np.testing.assert_allclose(row["probabilities"], probabilities, atol=1e-5)
    assert row["class_names"] == [f"digit {k}" for k in range(10)]
  outputs, expected = np.load(tmp_path / "outputs.npz"), both(batch)
  assert sorted(outputs) == ["final", "logits", "stage_1", "stage_2"]
  for name in outputs:
    np.testing.assert_array_equal(outputs[name], expected[name])  # Bit for bit.


def test_the_other_signature_takes_what_the_network_takes(digits):
  _, model, export, data = digits
  images, _ = next(iter(data.evaluation_batches(1)))
  outputs = tf.saved_model.load(str(export / "saved_model")).signatures["network"](images=images)
  np.testing.assert_allclose(outputs["logits"], model(images), atol=1e-4)


def test_a_keras_file_takes_pixels(digits):
  _, model, export, data = digits
  loaded = keras.models.load_model(export / "model.keras")
  _, images, _ = digit_pictures()
  expected = model(data.preprocessing.standardised(images[:20]))
  np.testing.assert_allclose(loaded(images[:20].astype(np.float32)), expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
def test_tflite_models_and_their_accuracy(digits):
  experiment, model, _, data = digits
  classifier = load_classifier(experiment.folder)
  few = get_dataset(model.config, "", "test")
  (accuracy,) = make_evaluate(model, tf.distribute.get_strategy())(few.evaluation_batches())
  assert tflite.accuracy(tflite.convert(classifier), few) == (pytest.approx(accuracy, abs=0.01), 297)
  images, labels = load_digits()["train"]
  dim = (images * 0.9).astype(np.uint8)  # None of its pixels is white.
  quantised = tflite.convert(
    classifier, ImageArrays(model.config, dim, labels, data.preprocessing.mean_image, flip=False)
  )
  assert tflite.accuracy(quantised, few) == (pytest.approx(accuracy, abs=0.1), 297)
  interpreter = tf.lite.Interpreter(model_content=quantised)
  (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
  assert (given["dtype"], given["quantization"]) == (np.uint8, (1.0, 0))  # A pixel is a pixel.
  kinds = {detail["dtype"] for detail in interpreter.get_tensor_details()}
  assert np.int8 in kinds
  interpreter.allocate_tensors()
  image = load_digits()["test"][0][0]
  interpreter.set_tensor(given["index"], image[np.newaxis])
  interpreter.invoke()
  expected = tf.nn.softmax(model(data.preprocessing.standardised(image[np.newaxis])))
  assert relative_difference(interpreter.get_tensor(result["index"]), expected) < 0.2


def test_pictures_of_any_size_and_form_are_scaled():
  preprocessing = Preprocessing(get_config("resnet-32"), np.zeros([32, 32, 3]))
  image = picture(0, 32, 32)
  np.testing.assert_array_equal(preprocessing(png(image)), image)
  wide = np.concatenate(
    [np.zeros([64, 20, 3]), np.repeat(np.repeat(image, 2, 0), 2, 1), np.zeros([64, 20, 3])], 1
  )
  np.testing.assert_allclose(preprocessing(tf.constant(wide, tf.uint8)), image, atol=25)
  tall = tf.constant(np.full([3, 1, 3], 77), tf.uint8)
  np.testing.assert_array_equal(preprocessing(tall), np.full([32, 32, 3], 77))
  gray = preprocessing(png(image[:, :, :1]))
  np.testing.assert_array_equal(gray, np.repeat(image[:, :, :1], 3, -1))
  np.testing.assert_allclose(preprocessing(cmyk_jpeg(255, 128, 55, 200))[3, 3], [200, 100, 43], atol=2)
  transparent = np.concatenate([image, image[:, :, :1]], -1)
  np.testing.assert_array_equal(preprocessing(png(transparent)), image)
  bitmap = b"BM" + (54 + 12).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
  bitmap += b"".join(n.to_bytes(4, "little") for n in (40, 1, 2)) + bytes([1, 0, 24, 0]) + bytes(24)
  bitmap += bytes([30, 20, 10, 0, 30, 20, 10, 0])
  np.testing.assert_array_equal(preprocessing(bitmap), np.broadcast_to([10, 20, 30], [32, 32, 3]))


def test_fashion_mnist_s_pictures_get_their_black_border():
  config = dataclasses.replace(get_config("resnet-32"), dataset="fashion-mnist")
  preprocessing = Preprocessing(config, np.zeros([32, 32, 3]))
  image = picture(1, 28, 28)
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
  np.testing.assert_array_equal(preprocessing(png(image)), padded)
  np.testing.assert_array_equal(preprocessing(png(padded)), padded)


@pytest.mark.parametrize("preprocessor", ["inception", "vgg"])
def test_decoded_pictures_are_preprocessed_as_files_are(preprocessor):
  preprocessing = Preprocessing(small_config(preprocessor=preprocessor), None)
  for size in ((40, 60), (300, 200), (1, 5)):
    image = picture(2, *size)
    np.testing.assert_allclose(preprocessing(tf.constant(image)), preprocessing(png(image)), atol=1e-4)


@pytest.fixture
def pictures(tmp_path):
  """A folder of pictures with another in it, and a damaged one beside it."""
  files, _, _ = digit_pictures()
  (tmp_path / "pictures/more").mkdir(parents=True)
  for name, file in (("b.png", files[0]), ("a.PNG", files[1]), ("more/c.jpeg", jpeg(3)), ("notes.txt", b"")):
    (tmp_path / "pictures" / name).write_bytes(file)
  (tmp_path / "damaged.jpg").write_bytes(jpeg(4)[:700])
  return tmp_path


def likeliest(model, data, image, count=5):
  probabilities = tf.nn.softmax(model(data.preprocessing.standardised(image[np.newaxis])))[0].numpy()
  return [(f"digit {k}", probabilities[k]) for k in np.argsort(-probabilities)[:count]]


@pytest.mark.parametrize("source", ["experiment", "export", "checkpoint"])
def test_a_folder_is_classified(digits, pictures, run_module, capsys, source):
  experiment, model, export, data = digits
  arguments = {
    "experiment": ["--id=revnet-38", f"--results={experiment.folder.parent}"],
    "export": [f"--export={export}"],
    "checkpoint": [f"--checkpoint={export}/tf1", f"--config={export}/conf.json"],
  }[source]
  assert run_module(classify, "pictures", *arguments) is None
  lines = capsys.readouterr().out.splitlines()
  assert [line for line in lines if not line.startswith(" ")] == [
    f"pictures/{name}" for name in ("a.PNG", "b.png", "more/c.jpeg")
  ]
  _, images, _ = digit_pictures()
  for start, image in ((1, images[1]), (7, images[0])):
    for line, (name, probability) in zip(lines[start : start + 5], likeliest(model, data, image), strict=True):
      assert line == f"  {100 * probability:6.2f} %  {name if source != 'checkpoint' else name[-1]}"


def test_standard_input_and_csv(digits, run_module, capsys, monkeypatch):
  _, model, export, data = digits
  files, images, _ = digit_pictures()
  monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(files[7])))
  assert run_module(classify, "-", f"--export={export}", "--csv", "--top=2") is None
  header, *rows = csv.reader(capsys.readouterr().out.splitlines())
  assert header == ["picture", "rank", "class", "probability"]
  expected = likeliest(model, data, images[7], 2)
  assert [row[:3] for row in rows] == [["-", str(k), name] for k, (name, _) in enumerate(expected, start=1)]
  np.testing.assert_allclose([float(row[3]) for row in rows], [p for _, p in expected], atol=1e-5)


def test_a_picture_that_cannot_be_read_is_named_and_the_others_are_classified(
  digits, pictures, run_module, capsys
):
  _, _, export, _ = digits
  error = run_module(classify, f"--export={export}", "damaged.jpg", "pictures/b.png", "nowhere.png")
  assert error == (
    "classify.py: error: 2 of 3 pictures could not be classified: nowhere.png: No such file or directory; "
    "damaged.jpg: it is no intact JPEG, PNG, GIF or BMP picture"
  )
  assert capsys.readouterr().out.count("%") == 5


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--id=a"], "no picture; give files, folders, or - for standard input"),
    (["pictures"], "one of --id, --export and --checkpoint must be given"),
    (["pictures", "--id=a", "--export=b"], "one of --id, --export and --checkpoint must be given"),
    (["empty", "--id=a"], "no picture in empty: there is no file *.jpg, *.jpeg, *.png, *.gif, *.bmp"),
    (["pictures", "--id=a"], "no experiment a in ./results/cifar and ./results/imagenet; give its folder by"),
    (["pictures", "--export=empty"], "no export in empty: empty/saved_model.pb is missing"),
    (["pictures", "--checkpoint=x"], "one of --model and --config must be given: what the checkpoint is of"),
    (["pictures", "--checkpoint=x", "--model=resnet-32"], "no checkpoint at x"),
  ],
)
def test_mistakes_are_one_line(pictures, run_module, arguments, message):
  (pictures / "empty").mkdir()
  error = run_module(classify, *arguments)
  assert error.startswith("classify.py: error: ")
  assert message in error
  assert "\n" not in error


def test_a_mean_image_or_names_that_do_not_fit_are_refused(tmp_path):
  model = make_network("revnet-38", dataset="digits")
  experiment = experiment_of(tmp_path, model)
  computed = load_classifier(experiment.folder)  # By version 0.1, or imported: the data has the mean.
  np.save(experiment.mean_image_file, np.zeros([8, 8, 3], np.float32))
  with pytest.raises(
    UserError, match=r"mean_image.npy must have the shape \(32, 32, 3\), in float, got \(8, 8"
  ):
    load_classifier(experiment.folder)
  experiment.mean_image_file.write_bytes(b"nothing")
  with pytest.raises(UserError, match="mean_image.npy is damaged"):
    load_classifier(experiment.folder)
  data = get_dataset(model.config, "", "train")
  experiment.save_mean_image(data.preprocessing.mean_image)
  files = tf.constant(digit_pictures()[0][:1])
  saved = load_classifier(experiment.folder)
  np.testing.assert_array_equal(computed.serve(files)["probabilities"], saved.serve(files)["probabilities"])
  experiment.class_names_file.write_bytes(b"\xff\n" + 9 * b"cat\n")  # A folder's name need not be UTF-8.
  assert class_names_of(model.config, experiment.folder) == ["\ufffd", *9 * ["cat"]]
  experiment.class_names_file.write_text("one\ntwo\n")
  with pytest.raises(UserError, match="class_names.txt must have 10 lines, a name for each class, got 2"):
    load_classifier(experiment.folder)


def test_without_a_mean_image_the_data_is_needed(tmp_path):
  experiment = experiment_of(tmp_path, make_network("resnet-32"))
  with pytest.raises(UserError, match="the mean of the training images is needed, and cifar-10 is not"):
    load_classifier(experiment.folder, data_dir=tmp_path)


def test_known_names(monkeypatch):
  monkeypatch.delitem(sys.modules, "tensorflow_datasets", raising=False)

  def names(**fields):
    return known_class_names(small_config(**fields))

  assert names()[:2] == ["n01440764", "n01443537"]
  assert len(set(names())) == 1000
  assert names(num_classes=3) == ["0", "1", "2"]
  hundred = names(dataset="cifar-100", num_classes=100)
  assert (hundred[0], hundred[53], hundred[99]) == ("apple", "orange", "worm")
  assert hundred == sorted(set(hundred))
  assert names(dataset="cifar-10", num_classes=10)[9] == "truck"
  assert names(dataset="fashion-mnist", num_classes=10)[9] == "Ankle boot"
  assert "tensorflow_datasets" not in sys.modules, "it takes seconds to load"
