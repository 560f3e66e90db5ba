"""Mutations of the KV manager's code that change nothing that a caller, or a person, could see; by name, with the reason."""

from __future__ import annotations

_ANY_BLOCK = "which of the free blocks is taken next is nobody's business"
_SET_LATER = "set before it is read"
_BOTH_ALIKE = "the two are the same, or in no order"
_ONLY_COMPARED = "places are only compared: any that grow will do, any negative one means none"
_NO_TIE = "no two units were used last at the same time"
_LESS_THAN_ONE = "a share of one token is rounded to none"
_ALL_WITHOUT_WINDOWS = "without windows every prefix has what they need: the condition saves time"
_TWO_ROWS_AT_LEAST = "fewer than two rows count as two"
_ANY_PLACE_BETWEEN = "any place above the low one and up to the high one halves what is left"
_ANY_NUMBER = "jobs are told apart by their numbers, whatever these are"
_PUT_AGAIN = "those used meanwhile are put behind all once more"
_DISK_NEEDS_TIER = "there is no disk without a tier on the host"
_SWAPPED = "with its arguments swapped"

EQUIVALENT: dict[str, str] = {
    "blocks.Unit.__init__: 0.0 + 1": _SET_LATER,
    "blocks.Unit.__init__: 0.0 + 1 (1)": _SET_LATER,
    "pool.BlockPool.__init__: reversed(range(blocks)) as it is": _ANY_BLOCK,
    "pool.BlockPool.take_free: reversed(evicted.evict()) as it is": _ANY_BLOCK,
    "pool.BlockPool.give_back: reversed(self.tier.cancel(unit)) as it is": _ANY_BLOCK,
    "pool.BlockPool._keep_or_free: reversed(cached.evict()) as it is": _ANY_BLOCK,
    "pool.BlockPool.fail_step: reversed(freed) as it is": _ANY_BLOCK,
    "pool.BlockPool.fail_step: reversed(freed) as it is (1)": _ANY_BLOCK,
    "host_tier.HostTier.__init__: reversed(range(blocks)) as it is": _ANY_BLOCK,
    "host_tier.HostTier.evict: reversed(block.evict()) as it is": _ANY_BLOCK,
    "kv.KvManager._give_back: reversed(blocks.writable) as it is": _ANY_BLOCK,
    "host_tier.HostTier.__init__: 0 + 1": _ONLY_COMPARED,
    "host_tier.HostTier.__init__: 0 + 1 (1)": _SET_LATER,
    "host_tier.HostTier.load: 1 + 1": _ONLY_COMPARED,
    "host_tier.HostTier.place: 1 + 1": _ONLY_COMPARED,
    "host_tier.HostTier._goes_before: unit.used <= next_saved.used with Lt": _NO_TIE,
    "pool.BlockPool._choose_saves: max(READY_SHARE * self.blocks, self.awaited) with its arguments swapped": _BOTH_ALIKE,
    "pool.BlockPool._choose_saves: min(count, units - len(saves)) with its arguments swapped": _BOTH_ALIKE,
    "kv.KvManager.open: chain(hits.units, *hits.windows) with its arguments swapped": _BOTH_ALIKE,
    "host_tier.HostTier.begin_step: max(1, units) with its arguments swapped": _BOTH_ALIKE,
    "host_tier.HostTier.cached: "
    f"(self.saved if unit.host or unit.reuse is Reuse.GONE else self.unsaved).add(unit, unit, first) {_SWAPPED}": _BOTH_ALIKE,
    f"host_tier.HostTier.fetched: self.saved.add(unit, self.unsaved.take(unit)) {_SWAPPED}": _BOTH_ALIKE,
    f"pool.BlockPool._choose_saves: max(READY_SHARE * self.blocks, self.awaited) {_SWAPPED}": _BOTH_ALIKE,
    f"pool.BlockPool._choose_saves: min(count, units - len(saves)) {_SWAPPED}": _BOTH_ALIKE,
    f"pool.BlockPool.await_copies: max(self.awaited, blocks + kept * self.unit_blocks) {_SWAPPED}": _BOTH_ALIKE,
    f"pool.BlockPool.launch: max(save_blocks // self.unit_blocks, int(self.awaited > 0)) {_SWAPPED}": _BOTH_ALIKE,
    f"pool.BlockPool.would_lose: max(soon, 0) {_SWAPPED}": _BOTH_ALIKE,
    f"kv.KvManager.fetch: max(unit.reuse, Reuse.TOOL) {_SWAPPED}": _BOTH_ALIKE,
    "kv.KvManager.disk_jobs: tier is None or disk is None without tier is None": _DISK_NEEDS_TIER,
    "kv.KvManager.disk_done: tier is None or disk is None or number not in disk.storing.keys() | disk.fetching.keys() "
    "without tier is None": _DISK_NEEDS_TIER,
    "pool.BlockPool._saved: cached is not None and unit in tier.put_back without cached is not None": "who uses it takes it out",
    "pool.BlockPool._saved: cached is not None and unit in tier.put_back without unit in tier.put_back": _PUT_AGAIN,
    "pool.BlockPool._saved: cached is not None and unit in tier.put_back with Or": _PUT_AGAIN,
    "order.EvictionOrder.lowest: without return None": "None all the same",
    "order.EvictionOrder._expire: without if looked[reuse] == now: ...": "what was looked at this moment is as it was",
    "retention.Retention.begin: _common(session.digests, owner.digests) with its arguments swapped": _BOTH_ALIKE,
    "retention.Retention.expect: max(unit.hint, owner.hint) with its arguments swapped": _BOTH_ALIKE,
    "kv.KvManager.kept_tokens: 0 + 1": _LESS_THAN_ONE,
    "kv.KvManager.lookup: not self.windows or behind.tell(digest, *of_unit) without not self.windows": _ALL_WITHOUT_WINDOWS,
    "kv.KvManager.probable_units: 1 + 1 (1)": _ANY_PLACE_BETWEEN,
    "kv.KvManager.limit_rows: 0 + 1": "with so many rows the length is the bound",
    "kv.KvManager.open: not True": "one share is held for each unit of the hits",
    "kv.KvManager.open: 1 + 1": _ONLY_COMPARED,
    "kv.KvManager.leave_behind: window.blocks_to_reserve(0, 0, limit) with its arguments swapped": _BOTH_ALIKE,
    "kv.KvManager.leave_behind: 0 + 1": _TWO_ROWS_AT_LEAST,
    "kv.KvManager.leave_behind: 0 + 1 (1)": _TWO_ROWS_AT_LEAST,
    "kv.KvManager.complete_step: max(self.completed_step, step_id) with its arguments swapped": _BOTH_ALIKE,
    "retention._common: min(len(one), len(other)) with its arguments swapped": _BOTH_ALIKE,
    "retention._common: 1 + 1": _ANY_PLACE_BETWEEN,
    "windows.WindowPool.limit_rows: max(2, rows) with its arguments swapped": _BOTH_ALIKE,
    "windows.WindowPool.first_seen: max(0, position - self.window + 1) with its arguments swapped": _BOTH_ALIKE,
    "windows.WindowPool.blocks_to_reserve: max(2, min(self._rows, length - cached + 1)) with its arguments swapped": _BOTH_ALIKE,
    "windows.WindowPool.blocks_to_reserve: min(units, -(-limit // size)) with its arguments swapped": _BOTH_ALIKE,
    "windows.WindowPool.blocks_to_reserve: min(self._rows, length - cached + 1) with its arguments swapped": _BOTH_ALIKE,
    f"windows.WindowPool.leave_behind: min(self.first_seen(confirmed) - part.first, len(part.sealed)) {_SWAPPED}": _BOTH_ALIKE,
    "windows.WindowPool.leave_behind: min(part.reserved, max(reserve, held + 1)) with its arguments swapped": _BOTH_ALIKE,
    "windows.WindowPool.leave_behind: max(reserve, held + 1) with its arguments swapped": _BOTH_ALIKE,
    "windows.WindowPool.leave_behind: max(0, gone) with its arguments swapped": _BOTH_ALIKE,
    "windows.WindowPool.leave_behind: max(0, gone) with its arguments swapped (1)": _BOTH_ALIKE,
    "windows.WindowPool.leave_behind: gone > 0 with GtE": "nothing is left out of nothing",
    "windows.WindowPool.open: whatever share is not None": "the units of hits are on the device, so that they can be held",
    "windows.WindowPool.give_back: reversed(part.writable) as it is": _ANY_BLOCK,
    "windows.WindowHits.__init__: 0 + 1": "a row without a gap from the first unit on is always long enough",
    "windows.WindowHits.last: whatever unit is not None": "where `tell` gave true they are all there",
    "windows.WindowHits.last: not True": "it has a list for each of its pools",
    "sequence_blocks.SequenceBlocks.__init__: 1 + 1": _ONLY_COMPARED,
    "pool.BlockPool.give_back: 1 + 1": _ONLY_COMPARED,
    "kv.KvManager.fetch: without return set()": "without a disk nothing is absent",
    "kv.KvManager.fetch: tier is None or disk is None without tier is None": "without a tier there is no disk",
    "disk_tier.DiskTier.__init__: 0 + 1 (1)": _ANY_NUMBER,
    "disk_tier.DiskTier.__init__: reversed(range(places)) as it is": _ANY_BLOCK,
    "disk_tier.DiskTier.hosted: self.unstored.add(unit, unit) with its arguments swapped": _BOTH_ALIKE,
    "disk_tier.DiskTier.next_to_store: without return None": "a function that ends gives None",
    "disk_tier.DiskTier._number: self._next_job += 1 with Sub": _ANY_NUMBER,
    "disk_tier.DiskTier._number: 1 + 1": _ANY_NUMBER,
    "sequence_blocks.SequenceBlocks.__init__: not False": _SET_LATER,
}
