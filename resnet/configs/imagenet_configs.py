"""ImageNet models of the RevNet paper (Gomez et al. 2017, section 5).

./run_imagenet_train.py --model revnet-104
./run_imagenet_eval.py --id EXPERIMENT

Published top-1 error on the validation images, single crop: RevNet-104 23.10 %, ResNet-101 23.01 %.

A run takes 600,000 steps of 256 images, which are 120 epochs, on 4 GPUs with 64 images each.
"""

import dataclasses

from resnet.configs.config import Config
from resnet.configs.config_factory import register

RESNET_50 = register(
  Config(
    name="resnet-50",
    dataset="imagenet",
    model_class="resnet",
    height=224,
    width=224,
    num_channel=3,
    num_classes=1000,
    num_residual_units=(3, 4, 6, 3),
    filters=(64, 64, 128, 256, 512),
    strides=(1, 2, 2, 2),
    use_bottleneck=True,
    init_filter=7,
    init_stride=2,
    init_max_pool=True,
    manual_gradients=False,
    chain="unrolled",
    dtype="float32",
    batch_size=256,
    valid_batch_size=50,
    preprocessor="inception",
    momentum=0.9,
    wd=1e-4,
    base_learn_rate=0.1,
    lr_decay_steps=(160000, 320000, 480000),
    lr_list=(0.01, 0.001, 0.0001),
    max_train_iter=600000,
    disp_iter=10,
    valid_iter=5000,
    save_iter=5000,
    run_validation=False,
    seed=1234,
  )
)
RESNET_101 = register(dataclasses.replace(RESNET_50, name="resnet-101", num_residual_units=(3, 4, 23, 3)))
RESNET_152 = register(dataclasses.replace(RESNET_50, name="resnet-152", num_residual_units=(3, 8, 36, 3)))

REVNET_56 = register(
  dataclasses.replace(
    RESNET_50,
    name="revnet-56",
    model_class="revnet",
    manual_gradients=True,
    num_residual_units=(2, 2, 3, 2),
    filters=(128, 128, 256, 512, 832),
  )
)
REVNET_104 = register(dataclasses.replace(REVNET_56, name="revnet-104", num_residual_units=(2, 2, 11, 2)))
