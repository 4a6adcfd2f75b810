"""How arrays lie over devices: the mesh, the logical axis names and their rules."""

from mmjax.parallel.mesh import AXES, make_mesh, mesh_shape
from mmjax.parallel.rows import num_row_parts, put_rows, share_of_rows
from mmjax.parallel.sharding import RULES, batch_sharding, param_shardings, partition_spec, shard

__all__ = [
    "AXES", "RULES", "batch_sharding", "make_mesh", "mesh_shape", "num_row_parts", "param_shardings", "partition_spec",
    "put_rows", "shard", "share_of_rows",
]
