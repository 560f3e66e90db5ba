"""Steps of a KV manager with a tier in host memory, for tests."""

from __future__ import annotations

from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.kv_integrity import block_states, check_kv
from tokenspeed.runtime.scheduling.sequence_blocks import Hits, SequenceBlocks
from tokenspeed.runtime.scheduling.step import BlockCopies

from .kv_helpers import find, turn

ALL = 1000


def manager(blocks: int = 4, host_blocks: int = 4, unit_blocks: int = 1) -> KvManager:
    return KvManager(blocks, 4, 4 * unit_blocks, "kv", host_blocks=host_blocks)


def prompt(number: int, units: int = 1) -> list[int]:
    return [100 * number + token for token in range(4 * units)]


def pairs(copies: tuple[BlockCopies, ...]) -> list[tuple[int, int]]:
    return [pair for each in copies for pair in zip(each.device.tolist(), each.host.tolist(), strict=True)]


class Steps:
    """Steps of a manager, one after the other."""

    def __init__(self, kv: KvManager) -> None:
        self.kv, self.number = kv, -1

    def launch(self, saved: int = ALL, loaded: int = ALL) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        self.kv.begin_step(loaded)
        self.number += 1
        saves, loads = self.kv.launch(self.number, saved)
        check_kv(self.kv)
        return pairs(saves), pairs(loads)

    def complete(self) -> None:
        self.kv.complete_step(self.number)
        check_kv(self.kv)

    def fail(self) -> bool:
        spoilt = self.kv.fail_step(self.number)
        self.kv.complete_step(self.number)
        check_kv(self.kv)
        return spoilt

    def run(self, saved: int = ALL, loaded: int = ALL) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        copies = self.launch(saved, loaded)
        self.complete()
        return copies


def start(kv: KvManager, tokens: list[int]) -> SequenceBlocks:
    """A sequence that takes its hits and has blocks for all its tokens."""
    blocks = kv.open(find(kv, tokens))
    kv.grow(blocks, kv.blocks_for(len(tokens)) - len(blocks.indices()))
    check_kv(kv)
    return blocks


def offloaded(*prompts: list[int], blocks: int = 4, host_blocks: int = 4) -> tuple[KvManager, Steps]:
    """A manager whose host alone has these prompts."""
    kv = manager(blocks, host_blocks)
    steps = Steps(kv)
    for tokens in prompts:
        turn(kv, "", tokens)
    steps.run()
    empty = kv.open(Hits([], 0))
    kv.grow(empty, blocks)
    kv.release(empty, -1)
    check_kv(kv)
    assert set(block_states(kv).values()) == {"free"}
    return kv, steps
