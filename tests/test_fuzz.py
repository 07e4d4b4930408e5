"""The short form of tests/fuzz.py: a few of its seeds, and faults that it must find."""

import dataclasses

import fuzz
import pytest
import tensorflow as tf

from resnet.reversible import ReversibleChain

PLAIN = fuzz.Config(functions=("dense > dropout > dense", "dense"))


@pytest.mark.parametrize("seed", range(20))
def test_what_the_engine_gives_is_what_plain_keras_gives(seed):
  result = fuzz.check(seed)
  assert result.outcome in ("equal", "refused"), f"{result.config}\n{result.details}"


def patch(monkeypatch, change):
  """Makes every call of a chain give change(call, streams, arguments)."""
  call = ReversibleChain.call

  def changed(self, inputs, **kwargs):
    return change(lambda inputs, **kwargs: call(self, inputs, **kwargs), inputs, kwargs)

  monkeypatch.setattr(ReversibleChain, "call", changed)


@tf.custom_gradient
def doubled(y):
  return tf.identity(y), lambda dy: 2 * dy


FAULTS = {
  "a doubled gradient": lambda call, inputs, kwargs: [doubled(y) for y in call(inputs, **kwargs)],
  "a lost gradient": lambda call, inputs, kwargs: call([inputs[0], tf.stop_gradient(inputs[1])], **kwargs),
  "dropout by another state": lambda call, inputs, kwargs: (call(inputs, **kwargs), call(inputs, **kwargs))[1],
}


@pytest.mark.parametrize("dtype", fuzz.TOLERANCES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_engine_is_found(monkeypatch, fault, dtype):
  config = dataclasses.replace(PLAIN, dtype=dtype)
  assert fuzz.compare(config) == ("equal", "")
  patch(monkeypatch, FAULTS[fault])
  outcome, details = fuzz.compare(config)
  assert outcome == "different"
  assert "gradient of" in details


@pytest.mark.parametrize("error", [ValueError("F of unit 0"), TypeError("F of unit 0"), KeyError("w")])
def test_an_error_that_is_not_the_engines_own_is_no_refusal(monkeypatch, error):
  def refuse(call, inputs, kwargs):
    raise error

  patch(monkeypatch, refuse)
  config = dataclasses.replace(PLAIN, functions=("tf.random", "dense"))
  assert fuzz.compare(config)[0] == "error"


def test_a_refusal_counts_only_where_it_is_allowed(monkeypatch):
  outcome, details = fuzz.compare(dataclasses.replace(PLAIN, tape="second"))
  assert outcome == "refused"
  assert "gradients of gradients" in details
  monkeypatch.setattr(fuzz, "refusable", lambda config: [])
  assert fuzz.compare(dataclasses.replace(PLAIN, tape="second"))[0] == "error"
