"""python -m resnet.tools.xla_plan: the memory of training steps on a GPU, as XLA plans it on a machine without one."""
