"""Programs for tests: those that lie outside of packages, as modules, and commands in processes of their own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
LLM_STUDY = ["-m", "llm_study"]


def start(*arguments: object, gpu: bool = False) -> subprocess.Popen[str]:
    """Start Python with these arguments; on the CPU with one thread, so that all processes compute alike."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if not gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run(*arguments: object, gpu: bool = False) -> tuple[str, str]:
    """Run Python with these arguments to a good end; return what it wrote to stdout and to stderr."""
    program = start(*arguments, gpu=gpu)
    out, error = program.communicate()
    assert program.returncode == 0, error
    return out, error


def torchrun(processes: int) -> list[str]:
    """Return the arguments that stand before a program which several processes are to run on this machine."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def load(path: Path) -> ModuleType:
    """Run a program as a module, not as the main one."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
