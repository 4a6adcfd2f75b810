"""How arrays lie over devices: the mesh, the logical axis names and their rules."""

from mmjax.parallel.mesh import AXES, check_dcn, make_mesh, mesh_shape
from mmjax.parallel.rows import num_row_parts, put_rows, share_of_rows
from mmjax.parallel.sharding import (
    RULES,
    batch_sharding,
    gather,
    layout,
    param_shardings,
    partition_spec,
    reshape,
    rules_of,
    shard,
    tower,
    use_towers,
)

__all__ = [
    "AXES", "RULES", "batch_sharding", "check_dcn", "gather", "layout", "make_mesh", "mesh_shape", "num_row_parts",
    "param_shardings", "partition_spec", "put_rows", "reshape", "rules_of", "shard", "share_of_rows", "tower",
    "use_towers",
]
