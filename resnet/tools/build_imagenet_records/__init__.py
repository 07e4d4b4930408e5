"""python -m resnet.tools.build_imagenet_records: ImageNet's pictures as record files."""
