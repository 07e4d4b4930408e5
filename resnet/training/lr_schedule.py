"""The learning rate of each iteration."""

import keras

from resnet.configs.config import Config


def learning_rate_schedule(config: Config) -> keras.optimizers.schedules.LearningRateSchedule:
  """Piecewise constant: base_learn_rate, then each of lr_list from its entry of lr_decay_steps on.

  Iteration i, counted from 0, takes the last rate whose boundary b satisfies i + 1 >= b, as in the
  original code. Keras' schedule takes the new rate where i > its boundary, which therefore is b - 2. It
  needs at least one boundary: the first one, -2, lies before all iterations.
  """
  boundaries = [-2] + [boundary - 2 for boundary in config.lr_decay_steps]
  rates = [config.base_learn_rate] * 2 + list(config.lr_list)
  return keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)


def learning_rate(config: Config, step: int) -> float:
  """The learning rate of update number `step`, counted from 1."""
  return float(learning_rate_schedule(config)(step - 1))
