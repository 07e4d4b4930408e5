"""python -m resnet.tools.benchmark: time and memory of training steps."""
