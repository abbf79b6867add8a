"""The python executor: `zygote.py` on wasmtime-py, for a machine that has only pip, and as a second opinion in the tests."""

from __future__ import annotations

from wherry_runner.execution import process
from wherry_runner.execution.adapter import ExecutorEngine
from wherry_runner.execution.wasmtime_config import engine_name
from wherry_runner.logs.allowances import Allowances


class PythonEngine(ExecutorEngine):
    """Implements `engine.Engine`."""

    def __init__(self, *, allowances: Allowances) -> None:
        super().__init__(
            "python",
            name=engine_name(),
            program=(*process.PYTHON, "wherry_runner.execution.zygote"),
            compiler=(*process.PYTHON, "wherry_runner.modules.compiler"),
            allowances=allowances,
        )
