"""The learning rate of each iteration."""

import keras

from resnet.configs.config import Config


def learning_rate_schedule(config: Config) -> keras.optimizers.schedules.LearningRateSchedule:
  """Piecewise constant: base_learn_rate, then each of lr_list from its entry of lr_decay_steps on.

  Iteration i, counted from 0, takes the last rate whose boundary b satisfies i + 1 >= b, as in the
  original code. Keras' schedule changes after its boundary, so that its boundary is b - 2.
  """
  return keras.optimizers.schedules.PiecewiseConstantDecay(
    [boundary - 2 for boundary in config.lr_decay_steps], [config.base_learn_rate, *config.lr_list]
  )
