"""Reversible and plain residual networks for TensorFlow 2 and Keras 3."""
