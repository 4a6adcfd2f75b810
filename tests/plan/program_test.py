"""Accounting of a compiled program, on HLO small enough to count by hand."""

import numpy as np
import pytest

from mmjax.plan import hlo
from mmjax.plan.program import Program

MESH = {"data": 2, "model": 4}
LOOP = """HloModule step, is_scheduled=true

%fused (p.0: f32[10,64], p.1: s32[]) -> f32[64] {
  %p.0 = f32[10,64]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %c.0 = s32[] constant(0)
  ROOT %slice.1 = f32[1,64]{1,0} dynamic-slice(%p.0, %p.1, %c.0), dynamic_slice_sizes={1,64}
}

%body (arg: (s32[], f32[10,64])) -> (s32[], f32[10,64]) {
  %arg = (s32[], f32[10,64]{1,0}, /*index=2*/f32[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %w = f32[10,64]{1,0} get-tuple-element(%arg), index=1
  %row = f32[1,64]{1,0} fusion(%w, %i), kind=kLoop, calls=%fused
  %gather = f32[1,256]{1,0} all-gather(%row), replica_groups=GROUPS, dimensions={1}, use_global_device_ids=true
  ROOT %out = (s32[], f32[10,64]{1,0}) tuple(%i, %w)
}

%condition (arg.1: (s32[], f32[10,64])) -> pred[] {
  %arg.1 = (s32[], f32[10,64]{1,0}) parameter(0)
  %limit = s32[] constant(10)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  ROOT %less = pred[] compare(%i.1, %limit), direction=LT
}

ENTRY %main (w.1: f32[10,64]) -> f32[10,64] {
  %w.1 = f32[10,64]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[10,64]{1,0}) tuple(%zero, %w.1)
  %loop = (s32[], f32[10,64]{1,0}) while(%start), condition=%condition, body=%bodyTRIPS
  ROOT %w.2 = f32[10,64]{1,0} get-tuple-element(%loop), index=1
}
"""
TRIPS = ', backend_config={"known_trip_count":{"n":"7"}}'


def program(groups: str = "{{0,1,2,3},{4,5,6,7}}", trips: str = "", **options) -> Program:
    return Program(LOOP.replace("GROUPS", groups).replace("TRIPS", trips), **options)


@pytest.mark.parametrize("trips, rounds", [("", 10), (TRIPS, 7)])
def test_a_collective_in_a_loop_runs_every_round(trips, rounds):
    (row,) = program(trips=trips).collectives(MESH)
    assert (row.kind, row.axes, len(row.group), row.count) == ("all-gather", ("model",), 4, rounds)
    assert (row.bytes, row.sent) == (rounds * 256, rounds * 256 * 3)       # it passes on three parts


def test_a_loop_without_a_known_length_is_reported():
    text = LOOP.replace("%limit = s32[] constant(10)", "%limit = s32[] add(%x, %y)").replace("TRIPS", "")
    found = Program(text.replace("GROUPS", "{}"))
    assert found.unknown_loops == 1 and program().unknown_loops == 0


@pytest.mark.parametrize("groups, axes, first", [
    ("{{0,1,2,3},{4,5,6,7}}", ("model",), (0, 1, 2, 3)),
    ("{{0,4},{1,5},{2,6},{3,7}}", ("data",), (0, 4)),
    ("[2,4]<=[8]", ("model",), (0, 1, 2, 3)),
    ("[4,2]<=[2,4]T(1,0)", ("data",), (0, 4)),
    ("[1,8]<=[8]", ("data", "model"), tuple(range(8))),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", ("data",), (0, 4)),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", ("data", "model"), tuple(range(8))),
    ("mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", ("model",), (0, 1, 2, 3)),
    ("mesh['axis_0'=2,'axis_1'=4], device_ids=(0,4,1,5,2,6,3,7) {'axis_0'}", ("model",), (0, 2)),
    ("mesh['axis_0'=8] {'axis_0':(2)4}", ("model",), (0, 1, 2, 3)),
    ("mesh['axis_0'=8] {'axis_0':(1)2}", ("data",), (0, 4)),
])
def test_groups_are_read_as_mesh_axes(groups, axes, first):
    (row,) = program(groups).collectives(MESH)
    assert (row.axes, row.group) == (axes, first)


def test_a_permute_has_the_axis_along_which_it_moves():
    text = """ENTRY %main (x: bf16[4]) -> bf16[4] {
  %x = bf16[4]{0} parameter(0)
  %moved = (bf16[4]{0}, bf16[4]{0}) collective-permute-start(%x), source_target_pairs={{0,4},{4,0},{1,5},{5,1}}
  ROOT %done = bf16[4]{0} collective-permute-done(%moved)
}"""
    (row,) = Program(text).collectives(MESH)
    assert (row.kind, row.axes, row.count, row.sent) == ("collective-permute", ("data",), 1, 8)


def test_a_slice_of_the_layers_counts_alone():
    rows, gathered, length = 10 * 2 * 256, 10 * (256 + 1024), 10 * 4     # the loop's index is read by the fusion, too
    assert program().memory_traffic() == rows + gathered + length


def test_what_stays_on_the_chip_is_no_traffic():
    text = """ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0:T(256)} parameter(0)
  %near = f32[8]{0:T(256)S(1)} negate(%x)
  ROOT %far = f32[8]{0:T(256)} negate(%near)
}"""
    assert Program(text, has_fast_memory=True).memory_traffic() == 32 + 32
    assert Program(text).memory_traffic() == 4 * 32


def test_an_update_in_place_counts_what_it_replaces():
    text = """%fused (a: f32[100,8], b: f32[1,8], i: s32[]) -> f32[100,8] {
  %a = f32[100,8]{1,0} parameter(0)
  %b = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %u = f32[100,8]{1,0} dynamic-update-slice(%a, %b, %i, %i)
}
ENTRY %main (a.1: f32[100,8], b.1: f32[1,8], i.1: s32[]) -> f32[100,8] {
  %a.1 = f32[100,8]{1,0} parameter(0)
  %b.1 = f32[1,8]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  ROOT %f = f32[100,8]{1,0} fusion(%a.1, %b.1, %i.1), kind=kLoop, calls=%fused
}"""
    assert Program(text).memory_traffic() == 32 + 4 + 32


def test_types_are_read_with_their_layouts():
    kind = "(f32[2,3]{1,0:T(8,128)S(1)}, bf16[], /*index=2*/pred[5]{0}, s4[8]{0}, f8e4m3fn[7]{0}, token[])"
    assert np.array_equal([size for size, _ in hlo.sizes(kind)], [24, 2, 5, 4, 1, 0][:4] + [7, 0])
