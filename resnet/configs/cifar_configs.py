"""CIFAR models of the RevNet paper (Gomez et al. 2017, section 5).

./run_cifar_train.py --dataset cifar-100 --model revnet-110

Published test error in per cent:

                          CIFAR-10             CIFAR-100
                          ResNet   RevNet      ResNet   RevNet
  resnet-32, revnet-38      7.14     7.24       29.95    28.96
  resnet-110, revnet-110    5.74     5.76       26.44    25.40
  resnet-164, revnet-164    5.24     5.17       23.37    23.69

A run takes 80,000 steps of 100 images, which are 160 epochs. docs/results.md has the minutes that 3,000 steps
took on a CPU.
"""

import dataclasses

from resnet.configs.config import Config
from resnet.configs.config_factory import register

RESNET_32 = register(
  Config(
    name="resnet-32",
    dataset="cifar-10",
    model_class="resnet",
    height=32,
    width=32,
    num_channel=3,
    num_classes=10,
    num_residual_units=(5, 5, 5),
    filters=(16, 16, 32, 64),
    strides=(1, 2, 2),
    use_bottleneck=False,
    init_filter=3,
    init_stride=1,
    init_max_pool=False,
    manual_gradients=False,
    chain="unrolled",
    dtype="float32",
    batch_size=100,
    valid_batch_size=100,
    preprocessor="cifar",
    momentum=0.9,
    wd=2e-4,
    base_learn_rate=0.1,
    lr_decay_steps=(40000, 60000),
    lr_list=(0.01, 0.001),
    max_train_iter=80000,
    disp_iter=100,
    valid_iter=1000,
    save_iter=10000,
    run_validation=False,
    seed=0,
  )
)
RESNET_110 = register(dataclasses.replace(RESNET_32, name="resnet-110", num_residual_units=(18, 18, 18)))
RESNET_164 = register(dataclasses.replace(RESNET_110, name="resnet-164", use_bottleneck=True))

REVNET_38 = register(
  dataclasses.replace(
    RESNET_32,
    name="revnet-38",
    model_class="revnet",
    manual_gradients=True,
    num_residual_units=(3, 3, 3),
    filters=(32, 32, 64, 112),
  )
)
REVNET_110 = register(
  dataclasses.replace(REVNET_38, name="revnet-110", num_residual_units=(9, 9, 9), filters=(32, 32, 64, 128))
)
REVNET_164 = register(dataclasses.replace(REVNET_110, name="revnet-164", use_bottleneck=True))
