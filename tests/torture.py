#!/usr/bin/env python3
"""What a training survives: killed, told to end, on full disks, with damaged files, and for long.

PYTHONPATH=. python tests/torture.py kills --number 1000
PYTHONPATH=. python tests/torture.py signals disks mutations soak --number 100 --mutations 10000 --steps 5000

Prints for each part how often each outcome came. The exit status is 1 if one came that docs/reliability.md
does not allow. Training is that of run_cifar_train.py, of a tiny network on digits with a checkpoint after
every step, in processes forked from one that has loaded TensorFlow and not used it yet.
"""

import argparse
import collections
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import os
import pathlib
import random
import re
import resource
import runpy
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator

os.environ["TF_DETERMINISTIC_OPS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import tensorflow as tf
from absl import logging
from imagenet_helpers import classic_example, jpeg, small_config, write_records

from resnet.configs import get_config, save_config
from resnet.data.imagenet import ImagenetDataset
from resnet.models import get_model
from resnet.original.config_file import load_config
from resnet.tools.build_imagenet_records.pictures import list_pictures
from resnet.training.checkpoint import Checkpoints
from resnet.training.optimizer import make_optimizer
from resnet.utils.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
PARTS = ("kills", "signals", "disks", "mutations", "soak")
ALLOWED = {
  "ended bit-identical",
  "killed",
  "saved and stopped",
  "ended at once",
  "ended before",
  "went on, and said so",
  "one line",
  "same result",
  "UserError",
  "passed over and reported",
  "another valid value",
  "another picture",
}
LONGEST = 60  # seconds that a process may take to end after a signal
OUTPUT = 10_000  # bytes, more than a training's output: the limit of a file's size holds for that, too
CONFIG = dataclasses.replace(
  get_config("revnet-test"),
  dataset="digits",
  height=32,
  width=32,
  num_residual_units=(1, 1),
  strides=(2, 2),
  filters=(4, 4, 8),
  batch_size=4,
  valid_batch_size=300,
  lr_decay_steps=(3, 5),
  max_train_iter=12,
  disp_iter=1,
  valid_iter=6,
  save_iter=1,
)

Counts = collections.Counter


def start(folder: pathlib.Path, file_limit: int | None = None, *arguments: str) -> int:
  """The process number of a training in `folder`, begun or continued; its output goes to the file `output`."""
  experiment = folder / "results/cifar/a"
  restore = any(experiment.glob("model.ckpt-*.index"))
  choice = [f"--config={ROOT_CONFIG}", "--dataset=digits"]
  if restore:  # With another configuration, whose training is the same.
    choice = ["--restore", "--keep_checkpoints=1", f"--override=name={random.choice('abc')}"]
  pid = os.fork()
  if pid:
    return pid
  status = 99
  try:
    os.chdir(folder)
    output = os.open(
      "/dev/null" if file_limit is not None and file_limit < OUTPUT else "../output",
      os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    )
    for number in (1, 2):
      os.dup2(output, number)
    if file_limit is not None:
      resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.argv = ["run_cifar_train.py", "--id=a", "--num_gpu=0", *choice, *arguments]
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
  except SystemExit as error:
    with contextlib.suppress(OSError):
      print(error.code if isinstance(error.code, str) else "", file=sys.stderr, flush=True)
    status = error.code if isinstance(error.code, int) else int(error.code is not None)
  finally:
    os._exit(status)


def wait(pid: int, seconds: float) -> int | None:
  """The exit status of a process (negative: the signal it died of), or None if it runs after `seconds`."""
  end = time.monotonic() + seconds
  while True:
    ended, status = os.waitpid(pid, os.WNOHANG)
    if ended:
      return os.waitstatus_to_exitcode(status)
    if time.monotonic() > end:
      return None
    time.sleep(0.005)


def finish(folder: pathlib.Path) -> int | None:
  """Continues the training to its end."""
  return wait(start(folder), 600)


def result(folder: pathlib.Path) -> dict[str, bytes]:
  """The last checkpoint's tensors and the curves without their times."""
  experiment = folder / "results/cifar/a"
  reader = tf.train.load_checkpoint(str(experiment / f"model.ckpt-{CONFIG.max_train_iter}"))
  names = [
    name for name in reader.get_variable_to_shape_map() if not name.startswith(("_CHECK", "save_counter"))
  ]
  found = {name: np.asarray(reader.get_tensor(name)).tobytes() for name in names}
  for curve in ("train_ce", "valid_acc", "learn_rate"):
    with open(folder / f"logs/public/a/{curve}.csv", newline="") as file:
      found[curve] = repr([row[:1] + row[2:] for row in csv.reader(file)]).encode()
  return found


@contextlib.contextmanager
def fresh() -> Iterator[pathlib.Path]:
  with tempfile.TemporaryDirectory(prefix="torture-") as parent:
    folder = pathlib.Path(parent, "run")
    folder.mkdir()
    yield folder


def show_output(folder: pathlib.Path) -> None:
  with contextlib.suppress(OSError):
    print(folder.joinpath("../output").read_text(errors="replace")[-3000:])


def is_one_line(folder: pathlib.Path) -> bool:
  """Whether the last training of `folder` ended in one line of error, without a traceback."""
  output = folder.joinpath("../output").read_text(errors="replace")
  return "Traceback" not in output and "error: " in output.strip().splitlines()[-1]


def ending(folder: pathlib.Path, expected: dict[str, bytes]) -> str:
  """How a training that was hindered ends when nothing hinders it any more."""
  status = finish(folder)
  if status != 0:
    show_output(folder)
    return f"could not be continued ({status})"
  found = result(folder)
  different = [name for name in expected if found.get(name) != expected[name]]
  return f"ended otherwise: {different[:3]}" if different else "ended bit-identical"


def interruptions(numbers: list[int], count: int, expected: dict[str, bytes], whole: float) -> Counts:
  """Sends signals to trainings at random moments, again and again, until each has come to its end."""
  outcomes: Counts = Counts()
  draw = random.Random(os.getpid())
  sent = 0
  while sent < count:
    with fresh() as folder:
      while True:
        pid = start(folder)
        status = wait(pid, draw.uniform(0, 1.3 * whole))
        if status is not None or sent >= count:
          status = wait(pid, LONGEST) if status is None else status
          break
        number = draw.choice(numbers)
        os.kill(pid, number)
        status = wait(pid, LONGEST)
        sent += status != 0  # A training that had ended was not interrupted.
        if status is None:
          os.kill(pid, signal.SIGKILL)
          wait(pid, LONGEST)
          outcomes["did not end"] += 1
        elif status == -number:
          outcomes["killed" if number == signal.SIGKILL else "ended at once"] += 1
        elif status == 128 + number:
          outcomes["saved and stopped"] += 1
        elif status == 0:
          outcomes["ended before"] += 1
        else:
          show_output(folder)
          outcomes[f"exit status {status} after signal {number}"] += 1
      outcomes[ending(folder, expected)] += 1
  return outcomes


def disks(count: int, expected: dict[str, bytes]) -> Counts:
  """Trainings whose files may have so many bytes or, where one can be mounted, whose disk has so many."""
  outcomes: Counts = Counts()
  draw = random.Random(os.getpid())
  largest = 150_000
  for _ in range(count):
    with fresh() as folder:
      size = draw.randrange(largest)
      small_disk = draw.random() < 0.5 and _mount(folder, 4 * size)
      try:
        status = wait(start(folder, None if small_disk else size), 600)
        if status == 0:
          outcomes["went on, and said so"] += 1
        elif status == 1 and ((not small_disk and size < OUTPUT) or is_one_line(folder)):
          outcomes["one line"] += 1
        else:
          show_output(folder)
          outcomes[f"exit status {status}"] += 1
        if small_disk:
          subprocess.run(["mount", "-o", "remount,size=100m", str(folder)], check=True)
        outcomes[ending(folder, expected)] += 1
      finally:
        if small_disk:
          subprocess.run(["umount", "-l", str(folder)], check=True)
  return outcomes


def _mount(folder: pathlib.Path, size: int) -> bool:
  if os.geteuid():
    return False
  command = ["mount", "-t", "tmpfs", "-o", f"size={max(size, 4096)}", "tmpfs", str(folder)]
  return subprocess.run(command, capture_output=True, check=False).returncode == 0


def damaged(data: bytes, draw: random.Random) -> bytes:
  """`data` with some bits flipped, bytes replaced, a part cut out, doubled or left off."""
  data = bytearray(data)
  for _ in range(draw.choice([1, 1, 1, 2, 5])):
    position = draw.randrange(max(1, len(data)))
    length = draw.choice([1, 2, 8, 100])
    kind = draw.randrange(5)
    if kind == 0 and data:
      data[position] ^= 1 << draw.randrange(8)
    elif kind == 1:
      data[position : position + length] = draw.randbytes(length)
    elif kind == 2:
      del data[position : position + length]
    elif kind == 3:
      data[position:position] = data[position : position + length]
    else:
      del data[position:]
  return bytes(data)


def mutations_of_configurations(count: int, folder: pathlib.Path, draw: random.Random) -> Counts:
  path = folder / "conf.json"
  save_config(CONFIG, path)
  whole = path.read_bytes()
  odd = [
    "null",
    "-1",
    "0",
    "1e400",
    "9" * 50,
    '""',
    "[]",
    "{}",
    "true",
    "[[1]]",
    "NaN",
    '"\\u0000"',
    "1" * 5000,
  ]

  def attempt():
    if draw.random() < 0.5:
      fields = json.loads(whole)
      text = json.dumps(fields | {draw.choice([*fields]): "?"}).replace('"?"', draw.choice(odd))
      path.write_text(text)
    else:
      path.write_bytes(damaged(whole, draw))
    return "same result" if load_config(path) == CONFIG else "another valid value"

  return _attempts(count, attempt)


def mutations_of_checkpoints(count: int, folder: pathlib.Path, draw: random.Random) -> Counts:
  model = get_model(CONFIG)
  optimizer = make_optimizer(CONFIG, model)
  checkpoints = Checkpoints(folder, model, optimizer)
  for step in (1, 2):
    for variable in model.variables:
      variable.assign(tf.fill(variable.shape, float(step)))
    checkpoints.save(step)
  files = {path: path.read_bytes() for path in folder.glob("model.ckpt-2.*")}
  files[folder / "checkpoint"] = (folder / "checkpoint").read_bytes()

  def attempt():
    for path, data in files.items():
      path.write_bytes(data)
    path = draw.choice([*files])
    path.write_bytes(damaged(files[path], draw))
    step = checkpoints.restore()
    if not all(np.all(variable.numpy() == step) for variable in model.variables):
      return "wrong values"
    return "same result" if step == 2 else "passed over and reported"

  return _attempts(count, attempt)


def mutations_of_records(count: int, folder: pathlib.Path, draw: random.Random) -> Counts:
  path = folder / "validation-00000-of-00001"
  pictures = [jpeg(number) for number in range(3)]
  records = [classic_example(picture, number + 1) for number, picture in enumerate(pictures)]
  write_records(path, records)
  whole = path.read_bytes()
  data = ImagenetDataset(small_config(), folder, "validation")
  batches = data.evaluation_batches()
  expected = [np.asarray(images) for images, _ in batches]

  def attempt():
    inside = draw.random() < 0.5
    if inside:  # A record whose checksum is right and whose picture is not.
      number = draw.randrange(len(records))
      picture = classic_example(damaged(pictures[number], draw), number + 1)
      write_records(path, [*records[:number], picture, *records[number + 1 :]])
    else:
      path.write_bytes(damaged(whole, draw))
    with data.data_errors():
      found = [np.asarray(images) for images, _ in batches]
    if len(found) == len(expected) and all(np.array_equal(a, b) for a, b in zip(found, expected)):
      return "same result"
    if inside and sum(map(len, found)) == len(records):
      return "another picture"
    return _fewer_records(found, expected, path)

  return _attempts(count, attempt)


def _fewer_records(found, expected, path) -> str:
  """A cut at the end of a record, or a record twice, cannot be told from a file that was written so."""
  found, expected = (np.concatenate([*images, np.zeros([0, 16, 16, 3])]) for images in (found, expected))
  known = all(any(np.array_equal(image, other) for other in expected) for image in found)
  return "another valid value" if known else "wrong values"


def mutations_of_archives(count: int, folder: pathlib.Path, draw: random.Random) -> Counts:
  def packed(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
      for name, data in members.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()

  classes = [{f"n{k}_{number}.JPEG": b"picture" for number in range(4)} for k in range(3)]
  whole = packed({f"n{k}.tar": packed(pictures) for k, pictures in enumerate(classes)})
  path = folder / "train.tar"

  def listed():
    return [(picture.synset, picture.name) for picture in list_pictures(path)]

  path.write_bytes(whole)
  expected = listed()

  def attempt():
    path.write_bytes(damaged(whole, draw))
    return "same result" if listed() == expected else "a list of other pictures"

  return _attempts(count, attempt)


def _attempts(count: int, attempt: Callable[[], str]) -> Counts:
  outcomes: Counts = Counts()
  signal.signal(signal.SIGALRM, _too_long)
  for _ in range(count):
    signal.alarm(LONGEST)
    try:
      outcomes[attempt()] += 1
    except UserError as error:
      outcomes["UserError" if "\n" not in str(error) else "UserError of several lines"] += 1
    except Exception as error:
      outcomes[f"{type(error).__name__}: {str(error)[:200]}"] += 1
    signal.alarm(0)
  return outcomes


def _too_long(*_):
  raise TimeoutError(f"took more than {LONGEST} s")


def soak(steps: int) -> Counts:
  """One long run with evaluations and saves: its memory, open files and step time by quarters."""
  every = max(1, steps // 100)
  overrides = {"max_train_iter": steps, "disp_iter": every, "valid_iter": 2 * every, "save_iter": every}
  samples = []
  with fresh() as folder:
    pid = start(folder, None, *[f"--override={name}={value}" for name, value in overrides.items()])
    while (status := wait(pid, 0.5)) is None:
      with contextlib.suppress(OSError, StopIteration, IndexError):
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
        memory = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        samples.append((memory, len(os.listdir(f"/proc/{pid}/fd"))))
    if status:
      show_output(folder)
      return Counts({f"exit status {status}": 1})
    with open(folder / "logs/public/a/train_ce.csv", newline="") as file:
      times = [_seconds(row["time"]) for row in csv.DictReader(file)][1:]
  intervals = [later - sooner for sooner, later in itertools.pairwise(times)]
  outcomes: Counts = Counts()
  for name, values, unit in (
    ("resident memory", [memory / 1024 for memory, _ in samples], "MB"),
    ("open files", [number for _, number in samples], ""),
    ("step", [1000 * interval / every for interval in intervals], "ms"),
  ):
    quarters = [values[len(values) * k // 4 : len(values) * (k + 1) // 4] for k in range(4)]
    medians = [statistics.median(quarter) for quarter in quarters if quarter]
    shown = ", ".join(f"{median:.1f}" for median in medians)
    print(f"soak, {steps} steps: {name} by quarters, median: {shown} {unit}")
    # A short run is mostly its start. Step times are for a person, who knows what else the machine did.
    if steps >= 1000 and unit != "ms" and medians[-1] > 1.1 * medians[1]:
      outcomes[f"{name} grew"] += 1
  return outcomes


def _seconds(text: str) -> float:
  hours, minutes, seconds = re.search(r"T(\d+):(\d+):([\d.]+)", text).groups()
  return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def shared(part: Callable[[int], Counts], count: int, processes: int) -> Counts:
  """Divides `count` attempts among forked processes; adds up their outcomes."""
  total: Counts = Counts()
  children = []
  with tempfile.TemporaryDirectory() as folder:
    for index in range(processes):
      share = count * (index + 1) // processes - count * index // processes
      pid = os.fork()
      if not pid:
        status = 1
        try:
          random.seed(index)
          pathlib.Path(folder, str(index)).write_text(json.dumps(part(share)))
          status = 0
        except BaseException as error:
          print(repr(error), file=sys.stderr)
        finally:
          os._exit(status)
      children.append(pid)
    for index, pid in enumerate(children):
      _, status = os.waitpid(pid, 0)
      if status:
        total[f"the process ended with {os.waitstatus_to_exitcode(status)}"] += 1
      else:
        total.update(json.loads(pathlib.Path(folder, str(index)).read_text()))
  return total


def main() -> int:
  parser = argparse.ArgumentParser()
  parser.add_argument("parts", nargs="+", choices=PARTS)
  parser.add_argument("--number", type=int, default=100, help="of signals, of each kind, and of disks")
  parser.add_argument("--mutations", type=int, default=10000, help="of each kind of file")
  parser.add_argument("--steps", type=int, default=5000, help="of the soak")
  parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
  arguments = parser.parse_args()
  save_config(CONFIG, ROOT_CONFIG)
  with fresh() as folder:
    begin = time.monotonic()
    assert finish(folder) == 0, show_output(folder)
    whole = time.monotonic() - begin
    expected = result(folder)
  forbidden = False

  def report(title: str, outcomes: Counts) -> None:
    nonlocal forbidden
    for outcome, number in sorted(outcomes.items()):
      if number:
        print(f"{title}: {number} {outcome}", flush=True)
      forbidden |= outcome not in ALLOWED

  def each(part: Callable[[int], Counts], count: int) -> Counts:
    return shared(part, count, arguments.processes)

  print(f"a training takes {whole:.1f} s")
  if "kills" in arguments.parts:
    kills = [signal.SIGKILL]
    report("SIGKILL", each(lambda n: interruptions(kills, n, expected, whole), arguments.number))
  if "signals" in arguments.parts:
    both = [signal.SIGTERM, signal.SIGINT]
    report("SIGTERM, SIGINT", each(lambda n: interruptions(both, n, expected, whole), arguments.number))
  if "disks" in arguments.parts:
    report("full disks", each(lambda n: disks(n, expected), arguments.number))
  if "mutations" in arguments.parts:
    for mutate in (
      mutations_of_configurations,
      mutations_of_checkpoints,
      mutations_of_records,
      mutations_of_archives,
    ):

      def in_folder(n: int, mutate=mutate) -> Counts:
        logging.set_verbosity(logging.ERROR)  # Each checkpoint that is passed over is a warning.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # The JPEG library reports each damage.
        with fresh() as folder:
          return mutate(n, folder, random.Random(random.random()))  # The same each time.

      report(mutate.__name__.replace("_", " "), each(in_folder, arguments.mutations))
  if "soak" in arguments.parts:
    report("soak", soak(arguments.steps))
  print("failed" if forbidden else "nothing but what is allowed")
  return int(forbidden)


ROOT_CONFIG = pathlib.Path(tempfile.gettempdir(), f"torture-{os.getpid()}.json")

if __name__ == "__main__":
  try:
    status = main()
  finally:
    ROOT_CONFIG.unlink(missing_ok=True)
  sys.exit(status)
