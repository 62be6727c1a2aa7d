"""musl gives a thread 128 KiB of stack: the norm of a transposed gradient, which takes 64 of them,
and rows fit into that. glibc takes the limit of the stack at a program's start for its threads'."""

import subprocess
import sys

import pytest

KIB = 128

STEPS = """
import ctypes, resource
resource.setrlimit(resource.RLIMIT_STACK, (8 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
import numpy as np, thalweg as tw
attributes, size = ctypes.create_string_buffer(64), ctypes.c_size_t()
ctypes.CDLL(None).pthread_getattr_default_np(attributes)
ctypes.CDLL(None).pthread_attr_getstacksize(attributes, ctypes.byref(size))
print(size.value)
table, ids = 3000, np.arange(2000).repeat(2)
grads = {
    "square": np.ones((1200, 1000), np.float64).T,
    "half": np.ones((1200, 1000), np.float16).T,
    "rows": tw.RowGrad(ids, np.ones((len(ids), 100), np.float16)),
}
last = None
for threads in (1, 3):
    tw.set_num_threads(threads)
    params = {name: np.ones((1000, 1200)) for name in ("square", "half")}
    params["rows"] = np.ones((table, 100))
    opt = tw.Adagrad(params, max_norm=1.0, on_nonfinite="raise")
    for _ in range(3):
        opt.step(grads)
    assert last is None or all(np.array_equal(params[name], last[name]) for name in params)
    last = params
print("the same")
"""


def test_steps_fit_into_the_stack_of_a_thread_of_musl():
    if sys.platform != "linux":
        pytest.skip("the limit of the stack is that of threads on Linux")
    limited = f"ulimit -S -s {KIB} && exec {sys.executable} -c '{STEPS.replace(chr(39), chr(34))}'"
    result = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=120)
    assert result.stdout == f"{KIB * 1024}\nthe same\n", result.stderr
