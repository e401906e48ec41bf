"""What a server tells the collector and the allocator. In a process of its own: it is for the whole life of one."""

from __future__ import annotations

import subprocess
import sys

from tests.harness import deployments

CODE = """
import gc
from fanfare.server import memory
memory.settle_in()
assert gc.get_freeze_count() > 1_000, "what is loaded is looked at no more"
assert gc.get_threshold()[0] == memory.YOUNG
[None] * 1_000_000  # 8 MB, and it goes on working
print("settled")
"""


def test_a_server_settles_in_once_all_is_loaded() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CODE], cwd=deployments.REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (ended.stdout, ended.stderr) == ("settled\n", "")
