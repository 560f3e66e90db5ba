"""Plans with device kernels that contradict themselves are refused, naming the place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tokenspeed.plans.device_integrity import check_binary
from tokenspeed.plans.device_kernels import CeilDivide, Computed, Constant, Pointer, Product, Scratch, Variant, evaluate
from tokenspeed.plans.errors import PlanError
from tokenspeed.plans.integrity import check_manifest, check_program
from tokenspeed.plans.program import Call
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import Entry, KernelLibrary, Manifest, Target

from ..runtime.device.device_plan import binaries, device_manifest, device_part, sample_program, step_program, write_device_plan
from ..runtime.device.fake_driver import elf_image, entry_name
from .sample_plan import sample_manifest
from .sample_plan import sample_program as host_program

replace = msgspec.structs.replace


def with_entries(manifest: Manifest) -> Manifest:
    names = ("programs/step.msgpack", "programs/sample.msgpack", *(entry_name(data, "cuda") for data in binaries("cuda")))
    return replace(manifest, entries=tuple(Entry(name=name, size=64, sha256="0" * 64) for name in sorted(names)))


def device_with(**changes: Any) -> Manifest:
    """A sound manifest but for fields of its device part, or, by `kernel` and `function`, of the first of these."""
    device = device_part("cuda")
    if "kernel" in changes:
        changes["kernels"] = (replace(device.kernels[0], **changes.pop("kernel")), *device.kernels[1:])
    if "function" in changes:
        changes["functions"] = (replace(device.functions[0], **changes.pop("function")), *device.functions[1:])
    return with_entries(device_manifest("cuda", device=replace(device, **changes)))


@pytest.mark.parametrize("vendor", ["cuda", "hip"])
def test_the_device_plan_is_sound(vendor: Any, tmp_path: Path) -> None:
    with Plan.open(write_device_plan(tmp_path / "plan.bin", vendor)) as plan:
        plan.verify_all()
        assert plan.manifest.device == device_part(vendor)


def test_sizes_follow_the_bucket() -> None:
    symbols = {"rows": 9, "logit_rows": 2}
    assert [evaluate(size, symbols) for size in (5, "rows", CeilDivide("rows", 4))] == [5, 9, 3]
    assert evaluate(Product((CeilDivide("logit_rows", 4), "rows", 7)), symbols) == 63


def test_decode_buckets_have_variants_of_their_own() -> None:
    function = replace(device_part("cuda").functions[0], decode=(Variant(most=2, kernel=None),))
    decode, mixed = ({"rows": 2, "logit_rows": logit_rows} for logit_rows in (2, 1))
    assert function.variant_for(decode) == Variant(most=2, kernel=None)
    assert function.variant_for(mixed) == function.variants[0]
    assert function.variant_for({"rows": 4, "logit_rows": 4}) is None


KERNEL = "device.kernels, embed.tile"
FUNCTION = "device.functions, embed"


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"vendor": "hip"}, "device.vendor"),
        ({"architecture": "sm_75"}, "device.architecture"),
        ({"architecture": "gfx942"}, "device.vendor"),
        ({"memory_bytes": 1000}, "device.memory_bytes"),
        ({"graph_rows": (2, 1)}, "device.graph_rows"),
        ({"graph_rows": (3,)}, "device.graph_rows"),
        ({"kernels": ()}, "device.kernels"),
        ({"functions": ()}, "device.functions"),
        ({"functions": device_part("cuda").functions[1:]}, "device.kernels"),
        ({"kernel": {"entry": "programs/step.msgpack"}}, f"{KERNEL}: entry"),
        ({"kernel": {"entry": "kernels/none.cubin"}}, f"{KERNEL}: entry"),
        ({"kernel": {"entry": entry_name(binaries("cuda")[1], "cuda")}}, "entries"),
        ({"kernel": {"symbol": "a b"}}, f"{KERNEL}: symbol"),
        ({"kernel": {"warps": 33}}, f"{KERNEL}: warps"),
        ({"kernel": {"cluster": 9}}, f"{KERNEL}: cluster"),
        ({"architecture": "sm_80", "kernel": {"cluster": 2}}, f"{KERNEL}: cluster"),
        ({"architecture": "sm_80", "kernel": {"dependent_launch": True}}, f"{KERNEL}: dependent_launch"),
        ({"kernel": {"dependent_launch": True, "global_scratch": Scratch(bytes=4)}}, f"{KERNEL}: dependent_launch"),
        ({"kernel": {"shared_bytes": (227 << 10) + 1}}, f"{KERNEL}: shared_bytes"),
        ({"kernel": {"global_scratch": Scratch(bytes=1, alignment=3)}}, f"{KERNEL}: scratch: alignment"),
        ({"kernel": {"grid": (0, 1, 1)}}, f"{KERNEL}: grid"),
        ({"kernel": {"grid": (CeilDivide("rows", 0), 1, 1)}}, f"{KERNEL}: grid: by"),
        ({"kernel": {"grid": (Product(()), 1, 1)}}, f"{KERNEL}: grid: factors"),
        ({"kernel": {"parameters": (Pointer(9, "f32"),)}}, f"{FUNCTION}, kernel embed.tile: operand 9"),
        ({"kernel": {"parameters": (Pointer(0, "f32"),)}}, f"{FUNCTION}, kernel embed.tile: operand 0"),
        ({"kernel": {"parameters": (Pointer(0, "i32"),)}}, f"{FUNCTION}, kernel embed.tile"),
        ({"kernel": {"parameters": (Pointer(0, "i32", 3),)}}, f"{KERNEL}: parameter 0: alignment"),
        ({"kernel": {"parameters": (Constant("i32", 2**31),)}}, f"{KERNEL}: parameter 0"),
        ({"kernel": {"parameters": (Constant("i64", 0.5),)}}, f"{KERNEL}: parameter 0"),
        ({"kernel": {"parameters": (Constant("f32", float("inf")),)}}, f"{KERNEL}: parameter 0"),
        ({"kernel": {"parameters": (Computed("rows", 0),)}}, f"{KERNEL}: parameter 0: divisor"),
        ({"function": {"name": "Embed"}}, "device.functions, Embed"),
        ({"function": {"variants": ()}}, f"{FUNCTION}: variants"),
        ({"function": {"variants": (Variant(most=4, kernel="nothing"),)}}, f"{FUNCTION}: variants"),
        ({"function": {"variants": (Variant(most=4, kernel="embed.tile"),) * 2}}, f"{FUNCTION}: variants"),
        ({"function": {"decode": (Variant(most=4, kernel="nothing"),)}}, f"{FUNCTION}: variants"),
        ({"function": {"name": "argmax"}}, "device.functions"),
    ],
)
def test_contradictions_of_the_device_part(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(PlanError) as refused:
        check_manifest(device_with(**dict(changes)))
    assert refused.value.where == where


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"device": None}, "device"),
        ({"target": Target(name="a", kind="cpu", features=(), row_padding="bucket")}, "device"),
        ({"target": Target(name="a", kind="cuda", features=(), row_padding="exact")}, "target.row_padding"),
        ({"kernels": KernelLibrary(entry="kernels/a.so", interface=1, kernels=(), compiler="c")}, "kernels.entry"),
        ({"memory": replace(device_manifest("cuda").memory, arena=100_001)}, "memory.arena"),
    ],
)
def test_contradictions_around_it(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(PlanError) as refused:
        check_manifest(with_entries(device_manifest("cuda", **changes)))
    assert refused.value.where == where


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (Call("device.nothing", (), ("hidden",)), "a device function of the plan"),
        (Call("rms_norm", (), ("hidden",)), "a device function, or one that runs on devices, in a plan for an accelerator"),
        (Call("device.add_row", (), ("hidden",)), r"elements of \['f32'\]"),
        (Call("device.add_row", ("token_ids",), ("hidden",)), r"elements of \['f32'\]"),
        (Call("device.add_row", ("row.0",), ("hidden",), {"scale": 2}), "none: a kernel's parameters hold them"),
    ],
)
def test_calls_that_no_device_function_takes(call: Call, message: str) -> None:
    manifest, program = with_entries(device_manifest("cuda")), step_program()
    check_program(manifest, program)
    check_program(manifest, sample_program())
    with pytest.raises(PlanError, match=message):
        check_program(manifest, replace(program, body=(*program.body, call)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"function": {"variants": (Variant(most=4, kernel="embed.tile"),)}}, "a variant for 8 rows"),
        ({"kernel": {"grid": (1, Product((65536, "rows")), 1)}}, "grid y"),
        ({"kernel": {"global_scratch": Scratch(bytes=2**53), "grid": ("rows", 1, 1)}}, "scratch"),
        ({"kernel": {"parameters": (*device_part("cuda").kernels[0].parameters, Computed("rows", 3))}}, "a multiple of 3"),
        ({"kernel": {"parameters": (*device_part("cuda").kernels[0].parameters, Computed(2**31))}}, "computed parameter"),
    ],
)
def test_launches_that_no_device_takes(changes: dict[str, Any], message: str) -> None:
    manifest = device_with(**dict(changes))
    check_manifest(manifest)
    with pytest.raises(PlanError, match=message):
        check_program(manifest, step_program())


def test_device_functions_in_a_plan_for_the_host() -> None:
    manifest, program = sample_manifest(), host_program()
    with pytest.raises(PlanError, match="only in a plan for an accelerator"):
        check_program(manifest, replace(program, body=(Call("device.embed", ("token_ids",), ("hidden",)),)))


def test_binaries_are_what_they_are_named() -> None:
    kernel, data = device_part("cuda").kernels[0], binaries("cuda")[0]
    check_binary(kernel, "cuda", data)
    with pytest.raises(PlanError, match="digest it is named by"):
        check_binary(kernel, "cuda", data + b"\0")
    for wrong, message in ((elf_image(224), "machine"), (b"MZ" + data[2:], "ELF image"), (data[:19], "ELF image")):
        with pytest.raises(PlanError, match=message):
            check_binary(replace(kernel, entry=entry_name(wrong, "cuda")), "cuda", wrong)
