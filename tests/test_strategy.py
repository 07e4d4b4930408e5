"""What the environment says of other machines: right, or one clear line."""

import json

import pytest

from resnet.training.strategy import _cluster
from resnet.utils.errors import UserError

TASK = {"type": "worker", "index": 0}


@pytest.mark.parametrize("text", ["{}", json.dumps({"task": TASK}), '{"cluster": null}'])
def test_a_tf_config_without_a_cluster_is_one_machine(monkeypatch, text):
  monkeypatch.setenv("TF_CONFIG", text)
  assert _cluster() is None


def test_a_cluster(monkeypatch):
  cluster = {"chief": ["a:1"], "worker": ["b.example:65535", "10.0.0.1:3"]}
  monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 1}}))
  resolver = _cluster()
  assert (resolver.task_type, resolver.task_id) == ("worker", 1)
  assert resolver.cluster_spec().as_dict() == cluster


@pytest.mark.parametrize(
  ("cluster", "message"),
  [
    ({"worker": {"a:1": 0}}, "must be like .*, got "),
    ({"worker": "a:1"}, "must be like .*, got "),
    ({"worker": [["a:1"]]}, "must name addresses host:port"),
    ({"worker": ["a:1", None]}, "must name addresses host:port"),
    ({"worker": ["a:65536"]}, "must name addresses host:port"),
    ({"worker": ["a:0"]}, "must name addresses host:port"),
    ({"worker": ["a:1"], "chief": ["b:1", "c:1"]}, "must name one chief at most, got 2"),
    ({"chief": ["b:1"]}, "no task 'worker' with index 0"),
  ],
)
def test_a_wrong_cluster_is_one_line(monkeypatch, cluster, message):
  monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": TASK}))
  with pytest.raises(UserError, match=f"^TF_CONFIG .*{message}") as error:
    _cluster()
  assert "\n" not in str(error.value)
  assert "host1:12345" in str(error.value)


@pytest.mark.parametrize("number", ["two", "-1", "1.5"])
def test_slurm_tasks_are_a_whole_number(monkeypatch, number):
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", number)
  with pytest.raises(UserError, match=f"SLURM_STEP_NUM_TASKS must be a number, got '{number}'"):
    _cluster()


@pytest.mark.parametrize("number", ["", "1"])
def test_one_slurm_task_is_one_machine(monkeypatch, number):
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", number)
  assert _cluster() is None
