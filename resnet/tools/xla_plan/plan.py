"""Compiles a program for a GPU that need not be there. Run in an environment of its own: see environment.py.

plan.py PROGRAM N: an HloModuleProto; on standard input the GPU, a GpuTargetConfigProto as text. Prints JSON.
"""

import glob
import json
import os
import pathlib
import re
import sys
import tempfile

DUMP = tempfile.TemporaryDirectory()
os.environ["XLA_FLAGS"] = f"--xla_dump_to={DUMP.name} --xla_dump_hlo_as_text"
os.environ["JAX_PLATFORMS"] = "cpu"  # The plugin has the compiler; no GPU is started.
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"  # cuDNN and cuBLAS are not needed to compile.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402
from jax._src import compiler  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402
from jax._src.lib import _jax  # noqa: E402
from jax._src.lib.mlir import ir  # noqa: E402
from jax.experimental import topologies  # noqa: E402


def compile_for(device, program: bytes):
  with mlir.make_ir_context():
    module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(program))
    assignment = np.array([[device]], object)
    options = compiler.get_compile_options(1, 1, device_assignment=assignment)
    devices = _jax.DeviceList((device,))
    return device.client.compile(module, executable_devices=devices, compile_options=options)


def at_the_peak(count: int) -> list[tuple[str, str, int]]:
  """(shape, name, bytes) of the largest tensors that are alive at the peak, but arguments."""
  (ranges,) = glob.glob(f"{DUMP.name}/*gpu_after_optimizations-live-range.txt")
  (assignment,) = glob.glob(f"{DUMP.name}/*gpu_after_optimizations-buffer-assignment.txt")
  values = r"value: <\d+ (\S+) @\d+> \(size=\d+,offset=\d+\): (\S+?\])"
  shapes = dict(re.findall(values, pathlib.Path(assignment).read_text()))
  text = pathlib.Path(ranges).read_text()
  tensors = re.findall(r"^    (\S+): (\d+) bytes", text[text.index("(peak):") :], re.MULTILINE)
  named = [(name.removesuffix("{}"), int(size)) for name, size in tensors]
  return [(shapes.get(name, "?"), name, size) for name, size in named if not name.startswith("arg")][:count]


topology = topologies.get_topology_desc(
  platform="cuda", topology_name="gpu", topology="1x1x1", target_config=sys.stdin.read()
)
stats = compile_for(topology.devices[0], pathlib.Path(sys.argv[1]).read_bytes()).get_compiled_memory_stats()
result = {
  "temporary_bytes": stats.temp_size_in_bytes,
  "argument_bytes": stats.argument_size_in_bytes,
  "output_bytes": stats.output_size_in_bytes,
  "peak": at_the_peak(int(sys.argv[2])),
}
print(json.dumps(result))
