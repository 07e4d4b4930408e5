"""Small networks for tests and experiments, as in the original code. No error is published for them.

./run_cifar_train.py --dataset digits --model revnet-test --override height=32 --override width=32

A run of 80,000 steps can be cut by --max_num_steps.
"""

import dataclasses

from resnet.configs.cifar_configs import RESNET_32, REVNET_38
from resnet.configs.config_factory import register

RESNET_TEST = register(
  dataclasses.replace(
    RESNET_32,
    name="resnet-test",
    batch_size=10,
    num_residual_units=(2, 2, 2),
    filters=(2, 2, 4, 8),
  )
)
REVNET_TEST = register(
  dataclasses.replace(
    REVNET_38,
    name="revnet-test",
    batch_size=10,
    height=8,
    width=8,
    num_residual_units=(2, 2),
    filters=(16, 16, 32),
    strides=(1, 2),
  )
)
REVNET_BTL_TEST = register(dataclasses.replace(REVNET_TEST, name="revnet-btl-test", use_bottleneck=True))
