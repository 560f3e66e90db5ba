"""Mutations of the KV manager's code that change nothing that a caller, or a person, could see; by name, with the reason."""

from __future__ import annotations

_ANY_BLOCK = "which of the free blocks is taken next is nobody's business"
_SET_LATER = "set before it is read"
_BOTH_ALIKE = "the two are the same, or in no order"
_ONLY_COMPARED = "places are only compared: any that grow will do, any negative one means none"
_LESS_THAN_ONE = "a share of one token is rounded to none"
_ALL_WITHOUT_WINDOWS = "without windows every prefix has what they need: the condition saves time"

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
    "host_tier.HostTier.begin_step: max(1, units) with its arguments swapped": _BOTH_ALIKE,
    "host_tier.HostTier.cached: self.unsaved.add(unit, unit, first) with its arguments swapped": _BOTH_ALIKE,
    "order.standing: min(unit.reuse, Reuse.IDLE) with its arguments swapped": _BOTH_ALIKE,
    "retention.Retention.begin: _common(session.digests, owner.digests) with its arguments swapped": _BOTH_ALIKE,
    "retention.Retention.expect: max(unit.hint, owner.hint) with its arguments swapped": _BOTH_ALIKE,
    "kv.KvManager.kept_tokens: 0 + 1": _LESS_THAN_ONE,
    "kv.KvManager.kept_tokens: 0 + 1 (1)": _LESS_THAN_ONE,
    "kv.KvManager.kept_tokens: min(self.tokens, on_host) with its arguments swapped": _BOTH_ALIKE,
    "kv.KvManager.kept_tokens: max(on_host - self.tokens, 0) with its arguments swapped": _BOTH_ALIKE,
    "kv.KvManager.lookup: not self.windows or behind.tell(digest, *of_unit) without not self.windows": _ALL_WITHOUT_WINDOWS,
    "sequence_blocks.SequenceBlocks.__init__: 1 + 1": _ONLY_COMPARED,
    "sequence_blocks.SequenceBlocks.__init__: not False": _SET_LATER,
}
