"""python -m resnet.tools.xla_plan: a training step's memory on a GPU, as XLA plans it without one."""
