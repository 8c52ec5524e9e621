"""The XLA flags of the tests: eight fake devices, and quick compilation."""

import json
import os
import subprocess
import sys

DEVICES = "--xla_force_host_platform_device_count=8"

# Programs run briefly here, and most of the time goes into compiling them. Most XLAs
# know only some of these options, and an unknown one in XLA_FLAGS aborts the process.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}

PROBE = """
import json, sys, jax
for name, value in json.loads(sys.argv[1]).items():
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
    else:
        print(f"--{name}={json.dumps(value)}")
"""


def flags_known_to_xla(options):
    """Asks the installed XLA, in another process, and returns flags for XLA_FLAGS."""
    command = [sys.executable, "-c", PROBE, json.dumps(options)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    found = subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return found.stdout.split()


def xla_flags():
    """The value for XLA_FLAGS, to be set before jax starts its backend."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    if DEVICES not in flags:  # Workers of pytest-xdist inherit the flags.
        flags += [DEVICES, *flags_known_to_xla(QUICK)]
    return " ".join(flags)
