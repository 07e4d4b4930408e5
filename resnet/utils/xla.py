"""How XLA compiles."""

import os

_SCHEDULER = "xla_cpu_enable_concurrency_optimized_scheduler"


def heed_memory_on_a_cpu() -> None:
  """Has XLA order the ops of programs for a CPU by their memory, unless XLA_FLAGS says otherwise.

  By TensorFlow 2.21's default it runs early what it can, and so rebuilds all activations before they are used.
  XLA reads its flags when it first compiles in a process: later calls change nothing. On a GPU the flag does
  nothing.
  """
  given = os.environ.get("XLA_FLAGS", "")
  if _SCHEDULER not in given:
    os.environ["XLA_FLAGS"] = f"--{_SCHEDULER}=false {given}".strip()
