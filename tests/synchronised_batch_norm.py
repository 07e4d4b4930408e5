"""Prints, as JSON, manual and ordinary gradients of a chain of synchronised batch norms on two devices."""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

from resnet.reversible import Rebuild, ReversibleChain, Store

tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
  keras.utils.set_random_seed(1)
  chain = ReversibleChain(
    [[keras.layers.BatchNormalization(synchronized=True) for _ in "FG"] for _ in range(2)]
  )
  chain.build([(None, 4)] * 2)
streams = np.random.RandomState(2).normal(size=(2, 8, 4)).astype("float32")


def replica_step(streams):
  with tf.GradientTape() as tape:
    tape.watch(streams)
    y1, y2 = chain(streams, training=True)
    loss = tf.reduce_sum(tf.sin(y1)) + tf.reduce_sum(y2**2)
  return tape.gradient(loss, [*streams, *chain.trainable_variables])


def step(streams):
  return [strategy.experimental_local_results(result) for result in strategy.run(replica_step, args=(streams,))]


parts = [
  strategy.experimental_distribute_values_from_function(
    lambda context, x=x: tf.split(x, 2)[context.replica_id_in_sync_group]
  )
  for x in streams
]
found = []
for chain.backward in (Rebuild(), Store()):
  found.append([gradient.numpy().tolist() for gradient in tf.nest.flatten(tf.function(step)(parts))])
json.dump(found, sys.stdout)
