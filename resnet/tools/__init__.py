"""Programs beside training, each run as python -m resnet.tools.NAME; figures.py is what two of them share."""

from resnet.utils.quiet import quiet_tensorflow

quiet_tensorflow()
