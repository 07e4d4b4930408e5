"""From a configuration to a model with its variables."""

import keras

from resnet.configs.config import Config
from resnet.models.resnet_model import ResNet
from resnet.models.revnet_model import RevNet


def get_model(config: Config, include_top: bool = True) -> keras.Model:
  """A network of `config`, built: images [N, H, W, C] -> logits [N, num_classes], float32 both.

  Without `include_top` it ends before the average pool and the classifier, images -> [N, H', W', C']: a
  backbone for another task. In both cases `model.features(images)` has the output of each stage.

  Its initial weights follow `keras.utils.set_random_seed`. The regularizers of its kernels are the weight decay
  of `config`: they act under `compile` and `fit`, and are part of the loss reported there.

  Example:
    >>> model = get_model(get_config("revnet-38"))
    >>> model(np.zeros([2, 32, 32, 3])).shape
    TensorShape([2, 10])
  """
  model = {"resnet": ResNet, "revnet": RevNet}[config.model_class](config, include_top)
  model.build((None, config.height, config.width, config.num_channel))
  return model
