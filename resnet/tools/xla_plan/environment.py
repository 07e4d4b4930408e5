"""The environment in which JAX compiles for a GPU: JAX's XLA and TensorFlow's do not go together in one."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

from resnet.utils.errors import UserError

# plan.py uses private parts of JAX: its version is one. The others need only be there.
REQUIREMENTS = (
  *(f"{name}==0.11.2" for name in ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda13-pjrt")),
  *("nvidia-cuda-nvcc>=13,<14", "nvidia-nvvm>=13,<14", "numpy", "ml_dtypes", "opt_einsum", "scipy"),
)
OLDEST_PYTHON = (3, 12)
# NVIDIA's numbers, in the fields of XLA's GpuTargetConfigProto.
_COMMON = """
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 device_vendor: "NVIDIA Corporation" device_address_bits: 64
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0" ecc_enabled: true pcie_bandwidth: 34359738368
"""
_FIELDS = {
  "h100": """name: "NVIDIA H100 80GB HBM3" platform_version: "Compute Capability 9.0a" core_count: 132
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES } fpus_per_core: 128
  shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 l2_cache_size: 52428800
  memory_bandwidth: 3352320000000 clock_rate_ghz: 1.98 device_memory_size: 84942979072""",
  "a100": """name: "NVIDIA A100-SXM4-80GB" platform_version: "Compute Capability 8.0" core_count: 108
  cuda_compute_capability { major: 8 } fpus_per_core: 64
  shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 l2_cache_size: 41943040
  memory_bandwidth: 2039000000000 clock_rate_ghz: 1.41 device_memory_size: 84942979072""",
}
GPUS = tuple(_FIELDS)


def default_folder() -> str:
  return str(pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "resnet_xla_plan")


def install(folder: str, python: str | None) -> None:
  """Makes the environment, 1.4 GB, in `folder`."""
  python = python or _new_python()
  for command in (
    [python, "-m", "venv", "--clear", folder],
    [str(_python_in(folder)), "-m", "pip", "install", "--quiet", "--no-deps", *REQUIREMENTS],
  ):
    try:
      status = subprocess.run(command).returncode
    except OSError as error:
      raise UserError(f"--python must be Python 3.12 or later; {python}: {error.strerror}") from None
    if status:
      raise UserError(f"the environment could not be made: see above what {' '.join(command[:4])} said")
  print(f"{folder}: made. python -m resnet.tools.xla_plan --help says what can be planned.")


def python_of(folder: str) -> str:
  """The Python of the environment in `folder`."""
  python = _python_in(folder)
  if not python.exists():
    raise UserError(
      f"JAX's environment is not in {folder}: make it by python -m resnet.tools.xla_plan --install, which "
      "needs Python 3.12 or later and 1.4 GB, or name another --environment"
    )
  return str(python)


def plan(python: str, program: pathlib.Path, gpu: str, largest: int) -> dict:
  """What XLA plans for a program.

  Args:
    python: of the environment.
    program: a file, an HloModuleProto.
    gpu: one of GPUS.
    largest: how many tensors at the peak to name.

  Returns:
    temporary_bytes, argument_bytes, output_bytes; peak: [shape, name, bytes] of the largest tensors there.
  """
  target = f'gpu_device_info {{ {_FIELDS[gpu]} {_COMMON} }} platform_name: "CUDA"'
  target += ' dnn_version_info { major: 9 minor: 10 } device_description_str: "GPU"'
  script = pathlib.Path(__file__).with_name("plan.py")
  unset = {"PYTHONPATH", "PYTHONHOME", "XLA_FLAGS"}  # They are TensorFlow's.
  process = subprocess.run(
    [python, script, program, str(largest)],
    input=target,
    capture_output=True,
    text=True,
    env={name: value for name, value in os.environ.items() if name not in unset},
  )
  if process.returncode:
    raise UserError(f"XLA did not compile the step: {' '.join(process.stderr.split()[-60:])}")
  return json.loads(process.stdout.splitlines()[-1])


def _python_in(folder: str) -> pathlib.Path:
  return pathlib.Path(folder) / "bin" / "python"


def _new_python() -> str:
  if sys.version_info >= OLDEST_PYTHON:
    return sys.executable
  for name in ("python3.14", "python3.13", "python3.12"):
    found = shutil.which(name)
    if found and not subprocess.run([found, "-c", ""], capture_output=True).returncode:
      return found
  raise UserError("Python 3.12 or later is needed and not on PATH; name one by --python")
