# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""
A CUDA device that is not there: tensors on it have shapes and types, but no values, and Inductor writes Triton for it.

What runs on it waits for no value (torch refuses to give one), and has kernels with the types that CUDA has.
"""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode


DEVICE = torch.device("cuda:0")
# Of an H100
PROPERTIES = SimpleNamespace(
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65_536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    gcnArchName="",
)
# torch without CUDA has nobody to ask which device is the current one
GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl { C10_REGISTER_GUARD_IMPL(CUDA, NoOpDeviceGuardImpl<DeviceType::CUDA>) }
"""


def missing(*, triton: bool) -> str | None:
    """Why there can be no such device here, if so."""
    if torch.backends.cuda.is_built():
        return "torch has CUDA"
    if shutil.which("g++") is None:
        return "no C++ compiler"
    if triton and find_spec("triton") is None:
        return "no Triton"
    return None


@cache
def _register_guard() -> None:
    folder, root = Path(mkdtemp()), Path(torch.__file__).parent
    (folder / "guard.cpp").write_text(GUARD)
    names = "guard.cpp", "-o", "guard.so", f"-I{root}/include", f"-L{root}/lib", "-lc10"
    subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", *names], cwd=folder, check=True)
    ctypes.CDLL(str(folder / "guard.so"))


@contextmanager
def faked_cuda() -> Iterator[None]:
    """Let tensors be made on [`DEVICE`]."""
    _register_guard()
    with FakeTensorMode():
        yield


class _Written(BaseException):
    """Inductor has written its code, which nothing here could run."""


def generated(call: Callable[[], Any]) -> str:
    """Code that Inductor writes when a compiled function is called under [`faked_cuda`]; the call ends there."""
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import config
    from torch._inductor.fx_passes import joint_graph, post_grad
    from torch._inductor.graph import GraphLowering
    from torch.utils import _triton

    written = []

    def stop(graph: GraphLowering) -> None:
        code = graph.codegen()[0]
        written.append(getattr(code, "value", code))
        raise _Written

    cpu = torch.device("cpu")
    for passes in (joint_graph, post_grad):
        passes.lazy_init(cpu)  # patterns, made by running operations, which cannot be done on our device
    with ExitStack() as stack:
        replaced: list[tuple[Any, str, Callable]] = [
            (GraphLowering, "compile_to_module", stop),
            (joint_graph, "lazy_init", lambda *_: None),
            (post_grad, "lazy_init", lambda *_: None),
            (torch.cuda, "current_device", lambda: 0),
            (torch.cuda, "device_count", lambda: 1),
            (torch.cuda, "get_device_properties", lambda *_: PROPERTIES),
            (torch.cuda, "get_device_capability", lambda *_: (PROPERTIES.major, PROPERTIES.minor)),
            (CudaInterface, "get_device_properties", staticmethod(lambda *_: PROPERTIES)),
            (CudaInterface, "current_device", staticmethod(lambda: 0)),
            (CudaInterface, "is_available", staticmethod(lambda: True)),
            (CudaInterface, "is_bf16_supported", staticmethod(lambda *_, **__: True)),
            (_triton, "triton_hash_with_backend", lambda: "none"),
        ]
        for where, name, value in replaced:
            stack.enter_context(mock.patch.object(where, name, value))
        stack.enter_context(config.patch(joint_graph_constant_folding=False))  # likewise
        try:
            call()
        except _Written:
            pass
    return written[0]


def kernels(code: str) -> dict[str, str]:
    """Triton kernels in the code by their names, in order."""
    return dict(re.findall(r"\ndef (triton_\w+)\(.*?\):\n(.*?)\n'''", code, re.DOTALL))
