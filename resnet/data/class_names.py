"""The names of the classes of the known data sets, in the order of their labels."""

import importlib.util
import pathlib

from resnet.configs.config import Config

_CIFAR_10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR_100 = """
  apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
  castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
  elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
  lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
  pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark
  shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
  television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_FASHION_MNIST = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_NAMES = {
  "digits": [str(digit) for digit in range(10)],
  "cifar-10": _CIFAR_10.split(),
  "cifar-100": _CIFAR_100.split(),
  "fashion-mnist": _FASHION_MNIST.split(","),
}


def known_class_names(config: Config) -> list[str]:
  """A name for each of the network's outputs: those of its data set, or else the numbers 0, 1, 2, ...

  ImageNet's are synsets of WordNet, such as n01440764. A network of fewer or more classes than its data set has
  is one of other data.
  """
  names = _imagenet_names() if config.dataset == "imagenet" else _NAMES.get(config.dataset, [])
  return names if len(names) == config.num_classes else [str(label) for label in range(config.num_classes)]


def _imagenet_names() -> list[str]:
  package = importlib.util.find_spec("tensorflow_datasets")  # It is not imported, which would take seconds.
  assert package is not None
  assert package.origin is not None
  file = pathlib.Path(package.origin).with_name("datasets") / "imagenet2012/labels.txt"
  return file.read_text(encoding="utf-8").split()
