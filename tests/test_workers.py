"""Two processes that train together, on 127.0.0.1."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys

import pytest
import tensorflow as tf
from helpers import ROOT, assert_close, start
from test_training import CONFIG, run, steps, tensors

from resnet.configs import save_config
from resnet.experiments.experiment import Experiment

TIMEOUT = 240  # seconds, after which a process counts as hanging


@pytest.fixture
def start_workers(tmp_path):
  """A function that starts the CIFAR script as two workers; what still runs in the end is killed."""
  processes = []

  def start_both(config, *arguments):
    save_config(config, tmp_path / "conf.json")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    addresses = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
      s.close()
    for index in range(2):
      task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
      command = [sys.executable, str(ROOT / "run_cifar_train.py"), "--num_gpu=0", "--id=w", *arguments]
      env = os.environ | {"TF_CONFIG": json.dumps(task)}
      pipe = subprocess.PIPE
      processes.append(subprocess.Popen(command, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, text=True))
    return processes[-2:]

  yield start_both
  for process in processes:
    process.kill()
    process.communicate()


def experiment(folder):
  return Experiment.named("w", str(folder / "results/cifar"), str(folder / "logs/public"))


def test_two_workers_train_as_two_replicas(start_workers, tmp_path):
  config = dataclasses.replace(CONFIG, max_train_iter=3, base_learn_rate=0.01, lr_list=(0.01, 0.01))
  workers = start_workers(config, "--config=conf.json")
  outputs = [worker.communicate(timeout=TIMEOUT) for worker in workers]
  assert [worker.returncode for worker in workers] == [0, 0], outputs
  strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
  replicas, _ = run(tmp_path / "replicas", "w", config=config, strategy=strategy)
  actual, expected = tensors(experiment(tmp_path), 3), tensors(replicas, 3)
  assert_close(actual.values(), expected.values(), 1e-3, list(expected))
  # One of them wrote, the other did not.
  assert steps(experiment(tmp_path), "train_ce") == steps(replicas, "train_ce")
  assert len((experiment(tmp_path).logs_folder / "cmd.txt").read_text().splitlines()) == 1


def test_a_lost_worker_ends_the_other_and_the_run_can_be_continued(start_workers, tmp_path):
  config = dataclasses.replace(CONFIG, max_train_iter=10**6, save_iter=1, valid_iter=10**6)
  survivor, lost = start_workers(config, "--config=conf.json")
  while not (experiment(tmp_path).folder / "model.ckpt-3.index").exists():
    assert survivor.poll() is None, survivor.communicate()
  lost.kill()
  _, error = survivor.communicate(timeout=TIMEOUT)
  assert survivor.returncode == 1
  assert "another process of the cluster was lost" in error.splitlines()[-1]
  assert "Graph execution error" not in error.splitlines()[-1]
  assert re.search(r"start all of them again by .*run_cifar_train.py --restore --id=w ", error.splitlines()[-1])
  single = start("run_cifar_train.py", "--num_gpu=0", "--id=w", "--restore", "--max_num_steps=1", cwd=tmp_path)
  assert single.returncode == 0, single.stderr
